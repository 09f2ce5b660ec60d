"""
The private names of other packages that hf_saddle leans on: what may vanish with any of their releases.

A name is listed under what has it, as a path that can be imported: a module, a class (for its attributes and methods,
those that only instances have too) or a function (for its arguments).
"""

PRIVATE_NAMES: dict[str, tuple[str, ...]] = {
    # What `torch.compile` returns has the compiled model inside, and is the only sign of it.
    "torch": ("_dynamo",),
    "torch._dynamo.OptimizedModule": ("_orig_mod",),
    # Whether an activation wrote into its input; hooks of a parameter, which would not fit another shape.
    # Padding in the order that `functional.pad` takes.
    "torch.nn.Conv2d": ("_reversed_padding_repeated_twice",),
    "torch.Tensor": ("_post_accumulate_grad_hooks", "_version"),
    # Quantised weights are tensors that wrap others.
    # The attention of processors, which PyTorch's counter of operations leaves out.
    "torch.ops.aten": (
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention_for_cpu_backward",
    ),
    "torch.utils": ("_python_dispatch",),
    # Parameters are put in and out without `register_parameter`, which would move them to the end; what pruning and
    # adapters put beside them is seen; modules resize themselves to what is loaded; hooks outlive the renewal of a
    # DDP wrapper.
    "torch.nn.Module": (
        "_backward_hooks",
        "_backward_pre_hooks",
        "_buffers",
        "_compiled_call_impl",
        "_forward_hooks",
        "_forward_hooks_always_called",
        "_forward_hooks_with_kwargs",
        "_forward_pre_hooks",
        "_forward_pre_hooks_with_kwargs",
        "_load_from_state_dict",
        "_load_state_dict_post_hooks",
        "_load_state_dict_pre_hooks",
        "_modules",
        "_parameters",
        "_state_dict_hooks",
        "_state_dict_pre_hooks",
    ),
    # Which parameters a wrapper reduces, and what it was made with.
    "torch.nn.parallel.DistributedDataParallel": (
        "_comm_hooks",
        "_delay_all_reduce_params",
        "_module_parameters",
        "_use_python_reducer",
    ),
    # What `fully_shard` leaves in a module, which torch cannot take back.
    "torch.distributed": ("_composable", "_composable_state"),
    "torch.distributed._composable_state": ("_module_state_mapping",),
    "torch.distributed.fsdp._fully_shard._fsdp_state.FSDPState": (
        "_fsdp_param_groups",
        "_post_forward_hook_handle",
        "_pre_forward_hook_handle",
    ),
    "torch.distributed.fsdp._fully_shard._fsdp_param_group.FSDPParamGroup": (
        "_module_to_pre_load_state_dict_hook_handle",
        "_module_to_pre_save_state_dict_hook_handle",
    ),
    "torch.distributed.fsdp._fully_shard._fsdp_param.FSDPParam": ("_post_load_hook_handle",),
    # The file of a config is read with checks.
    "transformers.PreTrainedConfig": (
        "_attn_implementation",
        "_decode_special_floats",
        "_dict_from_json_file",
        "_name_or_path",
    ),
    "transformers.PreTrainedModel": (
        "_can_record_outputs",
        "_from_config",
        "_get_dtype_plan",
        "_hf_peft_config_loaded",
        "_init_weights",
        "_is_hf_initialized",
        "_load_pretrained_model",
        "_upload_modified_files",
    ),
    # Which Auto classes know a model type; what a model records is kept by the name of its class.
    "transformers.models.auto.auto_factory": ("_BaseAutoModelClass",),
    "transformers.models.auto.auto_factory._BaseAutoModelClass": ("_model_mapping",),
    "transformers.utils.output_capturing": ("_CAN_RECORD_REGISTRY",),
    "transformers.utils.hub.cached_files": ("_raise_exceptions_for_missing_entries",),
    # Checkpoints that are whole or not used, callbacks that keep what JSON cannot hold, optimizers and wrappers of the
    # shapes that were loaded, probe batches as the training has them, and cards of every push.
    "transformers.Trainer": (
        "_created_lr_scheduler",
        "_get_output_dir",
        "_inner_training_loop",
        "_issue_warnings_after_load",
        "_load_callback_state",
        "_load_from_checkpoint",
        "_load_optimizer_and_scheduler",
        "_prepare_for_training",
        "_prepare_inputs",
        "_push_from_checkpoint",
        "_remove_unused_columns",
        "_run_epoch",
        "_save_checkpoint",
    ),
    # The place of a model among those that are prepared, which names its files.
    "accelerate.Accelerator": ("_models",),
    # What trainers collect in `compute_loss`, which passes of a probe are not to add to.
    "trl.SFTTrainer": ("_metrics",),
    # The methods that a metric consists of.
    "evaluate.Metric": ("_compute", "_info"),
}
