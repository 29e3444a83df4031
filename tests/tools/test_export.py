"""tools.export: equal answers through timm, onnxruntime and torch.export; the model card; a push to a stub server."""

import base64
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.executors.pillow_reference import reference_view
from pipeline.views.view import plan_view
from shards.reader import ShardSet
from tests.helpers.runs import COUNTS, make_data, options
from tests.helpers.shard_sets import photo
from tests.helpers.short_runs import make_run, take_steps
from tools import export
from tools.predict import evaluation_picture
from train.checkpoints.trained import load_trained
from train.exported import graphs, hub, timm_folder
from train.exported.checking import CheckFailedError, check_equal
from train.exported.graphs import Prepared
from train.models.backbone_views import find_preset
from train.models.build import ModelOptions
from train.run import FINISHED, train

CPU = torch.device("cpu")
NETWORKS: dict[str, dict[str, Any]] = {
    "plain": {"method.name": "vanilla", "model.name": "test_resnet"},
    "average": {"method.name": "vanilla", "model.name": "test_resnet", "ema_decay": 0.9},
    "cosine": {"method.name": "vanilla", "method.loss": "ldam", "model.name": "test_resnet"},
    "experts": {"method.name": "ride"},
    "contrastive": {"method.name": "ncl", "method.experts": 2, "method.hard_classes": 2},
    # What an evaluation does to the logits of the last layer belongs to the network.
    "without the prior": {"method.name": "pc_softmax", "model.name": "test_resnet"},
    "without the running feature": {"method.name": "tde"},
    "two branches": {"method.name": "bbn"},
    "parametric contrast": {"method.name": "paco", "method.key_queue": 16},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def plain(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    run_dir = tmp_path_factory.mktemp("runs") / "plain"
    assert train(options(data, run_dir, epochs=2, **NETWORKS["plain"])) == FINISHED
    return run_dir


def checkpoint(data: Path, folder: Path, kind: str) -> Path:
    run = make_run(options(data, folder, max_steps=2, **NETWORKS[kind]))
    run.folder.checkpoints.prepare()
    take_steps(run)
    run.trainer.save_checkpoint()
    return next((folder / "checkpoints").glob("epoch*.pt"))


def pictures() -> Tensor:
    """uint8 (5, 32, 32, 3)."""
    return torch.from_numpy(np.stack([np.array(photo(seed, 32, 32)) for seed in range(5)]))


@pytest.mark.parametrize(
    "kind",
    [kind if kind == "cosine" else pytest.param(kind, marks=pytest.mark.slow) for kind in NETWORKS],
)
def test_every_kind_of_network_answers_the_same_everywhere(
    kind: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra export")
    path, out = checkpoint(data, tmp_path / "run", kind), tmp_path / "out"
    command = [str(path), "--out", str(out), "--class-names", str(data / "train")]
    assert export.main([*command, "--formats", "onnx", "torch-export", "--inside", "normalise"]) == 0
    images, trained = pictures(), load_trained(path, CPU)
    config = json.loads((out / "config.json").read_text())
    mean, std = (torch.tensor(config["pretrained_cfg"][name]) for name in ("mean", "std"))
    network = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    with torch.inference_mode():
        expected = trained.logits(images)
        by_timm = network(((images / 255 - mean) / std).permute(0, 3, 1, 2))
        by_torch = torch.export.load(out / "model.pt2").module()(images)
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    by_onnx = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    for found in (by_timm, by_onnx, by_torch):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        assert found.argmax(dim=1).tolist() == expected.argmax(dim=1).tolist()
    assert config["label_names"] == ShardSet.open(data / "train").class_names
    assert config["longtail"]["samples_per_class"] == list(COUNTS)
    assert sum(config["longtail"]["class_prior"]) == pytest.approx(1)
    alone = "train.exported.network" not in capsys.readouterr().out
    assert alone == (kind in ("plain", "average"))


@pytest.mark.parametrize("kind", NETWORKS)
def test_timm_loads_every_kind_of_network(kind: str, data: Path, tmp_path: Path) -> None:
    path = checkpoint(data, tmp_path / "run", kind)
    assert export.main([str(path), "--out", str(tmp_path / "out")]) == 0
    images, trained = pictures(), load_trained(path, CPU)
    network = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    with torch.inference_mode():
        inputs = trained.method.context.input_builder.plain(images)
        torch.testing.assert_close(network(inputs), trained.logits(images), atol=1e-4, rtol=1e-4)


def tuned(data: Path, folder: Path, **changes: Any) -> tuple[Path, Path]:
    """The folder of a run that tuned a small transformer, which keeps what was tuned, and the weights that it tuned."""
    weights = folder / "vit.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit", img_size=32).state_dict(), weights)
    values = {"method.name": "finetune", "model.name": "test_vit", "model.width": None, "model.image_size": 32}
    values |= {"model.weights": weights, "data.preset": "backbone-mda", "epochs": 1, "optimizer.lr": 0.5, **changes}
    assert train(options(data, folder / "run", **values)) == FINISHED
    return folder / "run", weights


def test_a_tuned_network_is_exported_whole(data: Path, tmp_path: Path) -> None:
    """With the frozen weights, which its checkpoint leaves in their file, and the modules in its blocks."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra export")
    run_dir, weights = tuned(data, tmp_path, **{"method.tuned": "adaptformer"})
    moved, out = tmp_path / "moved.safetensors", tmp_path / "out"
    weights.rename(moved)
    assert export.main([str(run_dir), "--out", str(out)]) == 1
    command = [str(run_dir), "--out", str(out), "--weights", str(moved), "--formats", "onnx", "--inside", "resize"]
    assert export.main(command) == 0
    config = json.loads((out / "config.json").read_text())
    assert config["pretrained_cfg"]["interpolation"] == "bicubic"
    assert "weights" not in config["model_args"]["model"]
    trained = load_trained(run_dir, CPU, weights=moved)
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    network = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    for height, width in ((60, 90), (45, 33)):
        photo(1, width, height).save(tmp_path / "picture.png")
        picture = torch.from_numpy(np.array(evaluation_picture(tmp_path / "picture.png", trained)))[None]
        with torch.inference_mode():
            expected = trained.logits(picture)
            by_timm = network(trained.method.context.input_builder.plain(picture))
        torch.testing.assert_close(by_timm, expected, atol=1e-4, rtol=1e-4)
        original = np.array(Image.open(tmp_path / "picture.png"))[None]
        by_onnx = torch.from_numpy(session.run(None, {"images": original})[0])
        torch.testing.assert_close(by_onnx, expected, atol=0.2, rtol=0)  # logits up to 25; of grey levels that round
        assert by_onnx.argmax() == expected.argmax()


def test_lora_is_folded_so_that_timm_needs_nothing_else(data: Path, tmp_path: Path) -> None:
    run_dir, _ = tuned(data, tmp_path, **{"method.tuned": "lora", "method.head": "linear"})
    assert export.main([str(run_dir), "--out", str(tmp_path / "out")]) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architecture"] == "test_vit" and config["model_args"]["img_size"] == 32
    trained, images = load_trained(run_dir, CPU), pictures()
    assert trained.model.get_parameter("blocks.0.attn.lora.q.up").abs().max() > 0
    network = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    with torch.inference_mode():
        by_timm = network(trained.method.context.input_builder.plain(images))
        torch.testing.assert_close(by_timm, trained.logits(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["crt", "mislas", "fsa"])
def test_a_second_stage_is_exported_without_its_first(
    name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = checkpoint(data, tmp_path / "first", "plain")
    second = NETWORKS["plain"] | {"method.name": name, "model.init_from": first}
    monkeypatch.setitem(NETWORKS, "second stage", second)
    test_timm_loads_every_kind_of_network("second stage", data, tmp_path)


def test_timm_loads_a_plain_network_without_this_package(plain: Path, data: Path, tmp_path: Path) -> None:
    best = plain / "checkpoints" / "best.pt"
    assert export.main([str(plain), "--out", str(tmp_path / "out")]) == 0
    code = (
        "import sys, timm, torch; m = timm.create_model(sys.argv[1], pretrained=True).eval(); "
        "print(m(torch.ones(1, 3, 32, 32)).tolist(), m.pretrained_cfg['label_names'])"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, f"local-dir:{tmp_path / 'out'}"], capture_output=True, text=True, check=True
    )
    with torch.inference_mode():
        expected = load_trained(best, CPU).model(torch.ones(1, 3, 32, 32)).tolist()
    logits, names = done.stdout.strip().split("]] ")
    np.testing.assert_allclose(json.loads(f"{logits}]]"), expected, rtol=1e-4, atol=1e-5)
    assert names == str(ShardSet.open(data / "train").class_names)


@pytest.mark.parametrize("preset", ["imagenet", "cifar", "backbone"])
@pytest.mark.parametrize(("height", "width"), [(300, 437), (500, 231), (256, 256), (97, 64)])
def test_images_are_resized_inside_as_an_evaluation_does(preset: str, height: int, width: int, tmp_path: Path) -> None:
    chosen = find_preset(preset, ModelOptions("test_vit.r160_in1k"))
    picture = photo(3, width, height)
    picture.save(tmp_path / "picture.png")
    plan = plan_view(chosen.evaluation, np.array([width]), np.array([height]), lambda purpose: np.random.default_rng())
    expected = reference_view((tmp_path / "picture.png").read_bytes(), plan, 0).astype(np.float32)
    seen = Prepared(nn.Identity(), chosen, resize=True)(torch.from_numpy(np.array(picture))[None])[0]
    mean, std = (torch.tensor(v)[:, None, None] for v in (chosen.normalization.mean, chosen.normalization.std))
    found = (255 * (seen * std + mean)).permute(1, 2, 0).numpy()
    # Grey levels: Pillow computes in integers and may do rows first, which the overshoots of the cubic show more.
    assert np.abs(found - expected).max() < (3.1 if chosen.evaluation.resampling == "bicubic" else 1.1)
    assert np.abs(found - expected).mean() < 0.3


def test_a_graph_that_resizes_takes_images_of_any_size(plain: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra export")
    path = plain / "checkpoints" / "best.pt"
    command = [str(path), "--out", str(tmp_path), "--formats", "onnx", "--inside", "resize", "--preset", "imagenet"]
    assert export.main(command) == 0
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for height, width in ((240, 500), (700, 230)):
        images = np.array(photo(1, width, height))[None]
        assert session.run(None, {"images": images})[0].shape == (1, len(COUNTS))


def test_the_model_card_says_what_one_has_to_know(plain: Path, tmp_path: Path) -> None:
    last = max((plain / "checkpoints").glob("epoch*.pt"))
    command = [str(last), "--out", str(tmp_path / "kite-net"), "--license", "cc-by-4.0"]
    assert export.main(command) == 0
    text = (tmp_path / "kite-net" / "README.md").read_text()
    _, header, body = text.split("---\n", 2)
    fields = yaml.safe_load(header)
    result = json.loads((plain / "result.json").read_text())
    assert fields["license"] == "cc-by-4.0"
    assert fields["library_name"] == "timm"
    (index,) = fields["model-index"]
    values = {metric["type"]: metric["value"] for metric in index["results"][0]["metrics"]}
    assert values["all"] == pytest.approx(result["test"]["last"]["all"], abs=0.01)
    assert result["data"]["train"]["checksum"] in body
    assert "# kite-net" in body
    assert export.main([str(last), "--out", str(tmp_path / "open")]) == 0
    assert "Not stated" in (tmp_path / "open" / "README.md").read_text()


def test_an_export_that_answers_otherwise_is_refused(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(timm_folder, "loaded", lambda folder: lambda images: torch.zeros(len(images), len(COUNTS)))
    assert export.main([str(plain / "checkpoints" / "best.pt"), "--out", str(tmp_path)]) == 1
    assert "timm: logits differ by" in capsys.readouterr().err
    with pytest.raises(CheckFailedError, match="shape"):
        check_equal("x", nn.Identity(), lambda images: images[:1], torch.ones(2, 3))
    with pytest.raises(CheckFailedError, match="differ"):
        check_equal("x", nn.Identity(), lambda images: images * torch.nan, torch.ones(2, 3))


def test_without_the_extra_the_error_names_it(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    path = str(plain / "checkpoints" / "best.pt")
    assert export.main([path, "--out", str(tmp_path), "--formats", "onnx"]) == 1
    assert "pip install 'longtail[export]'" in capsys.readouterr().err
    assert graphs.TORCH_EXPORT == "model.pt2"
    assert export.main([path, "--out", str(tmp_path), "--class-names", str(tmp_path / "none")]) == 1
    assert export.main([str(tmp_path / "none.pt"), "--out", str(tmp_path)]) == 1


class Stub(BaseHTTPRequestHandler):
    """As much of the Hub as an upload needs; what arrives is kept on the server."""

    server: Any

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.path, self.headers.get("Authorization")))
        if self.server.refuses:
            self.answer(403, {"error": "no"})
        elif self.path.endswith("/repos/create"):
            self.answer(200, {"url": f"{self.server.url}/me/kites", "name": "me/kites"})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            answers = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
            self.answer(200, {"files": answers})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer(200, {"commitUrl": f"{self.server.url}/me/kites/commit/1", "commitOid": "1", "success": True})
        else:
            self.answer(200, {})

    def do_GET(self) -> None:
        self.answer(200, {"id": "me/kites", "sha": "0", "siblings": []})

    def answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    server.url, server.seen, server.files, server.refuses = f"http://127.0.0.1:{server.server_port}", [], {}, False
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_folder_is_pushed_whole(
    plain: Path, tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    path = str(plain / "checkpoints" / "best.pt")
    assert export.main([path, "--out", str(tmp_path / "out"), "--push", "me/kites", "--private"]) == 0
    assert "pushed to" in capsys.readouterr().out
    assert server.files == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert set(server.files) == {"README.md", "config.json", "model.safetensors"}
    assert {authorization for _, authorization in server.seen} == {"Bearer hf_test"}


def test_a_refused_push_is_said_and_the_folder_stays(tmp_path: Path, server: Any) -> None:
    server.refuses = True
    (tmp_path / "README.md").write_text("hello")
    with pytest.raises(hub.PushError, match="me/kites: not pushed"):
        hub.push(tmp_path, "me/kites", private=True, endpoint=server.url)
    assert (tmp_path / "README.md").exists()


def test_pictures_of_the_fixture_differ() -> None:
    first, second = (Image.fromarray(image.numpy()) for image in pictures()[:2])
    assert first.tobytes() != second.tobytes()
