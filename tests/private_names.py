"""
The private names of other packages that hf_saddle leans on: what may vanish with any of their releases.

A name is listed under what has it, as a path that can be imported: a module, a class (for its attributes and methods,
those that only instances have too) or a function (for its arguments).
"""

PRIVATE_NAMES: dict[str, tuple[str, ...]] = {
    # What `torch.compile` returns has the compiled model inside, and is the only sign of it.
    "torch": ("_dynamo",),
    "torch._dynamo.OptimizedModule": ("_orig_mod",),
    # Parameters are put in and out without `register_parameter`, which would move them to the end; modules resize
    # themselves to what is loaded; hooks outlive the renewal of a DDP wrapper.
    "torch.nn.Module": (
        "_backward_hooks",
        "_backward_pre_hooks",
        "_compiled_call_impl",
        "_forward_hooks",
        "_forward_hooks_always_called",
        "_forward_hooks_with_kwargs",
        "_forward_pre_hooks",
        "_forward_pre_hooks_with_kwargs",
        "_load_from_state_dict",
        "_load_state_dict_post_hooks",
        "_load_state_dict_pre_hooks",
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
    "transformers.PreTrainedConfig": ("_attn_implementation", "_name_or_path"),
    "transformers.PreTrainedModel": (
        "_can_record_outputs",
        "_from_config",
        "_hf_peft_config_loaded",
        "_init_weights",
        "_load_pretrained_model",
        "_no_split_modules",
        "_upload_modified_files",
    ),
    "transformers.utils.hub.cached_files": ("_raise_exceptions_for_missing_entries",),
    # Checkpoints that are whole or not used, callbacks that keep what JSON cannot hold, and cards of every push.
    "transformers.Trainer": (
        "_get_output_dir",
        "_issue_warnings_after_load",
        "_load_callback_state",
        "_push_from_checkpoint",
        "_run_epoch",
        "_save_checkpoint",
    ),
    # The methods that a metric consists of.
    "evaluate.Metric": ("_compute", "_info"),
}
