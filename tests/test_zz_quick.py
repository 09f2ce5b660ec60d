import os, time, re, runpy
from pathlib import Path
def test_quick(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    t=time.time(); c=time.process_time()
    exec(compile(re.findall(r"^```python\n(.*?)^```", Path("/work/wt/compare/README.md").read_text(), re.DOTALL|re.MULTILINE)[0],"q","exec"),{})
    out=capsys.readouterr().out
    open("/tmp/x/quick.out","w").write(out+f"\nwall {time.time()-t} cpu {time.process_time()-c}\n")
