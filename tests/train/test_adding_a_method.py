"""docs/adding-a-method.md, followed to the letter: its file and its recipe train, and combine."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import train.methods.objectives
from tests.helpers.runs import ROOT
from tests.helpers.short_runs import make_run, take_steps
from tests.helpers.steps import context, loss_of, make_method, micro_step, random_images
from train.models.build import ModelOptions
from train.options import parse

PAGE = (ROOT / "docs" / "adding-a-method.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return found


@pytest.fixture
def focal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the objective's file, which the package of objectives looks into, and its recipe."""
    assert "`train/methods/objectives/focal.py`" in PAGE
    (tmp_path / "focal.py").write_text(block("python"), encoding="utf-8")
    (tmp_path / "focal.yaml").write_text(block("yaml"), encoding="utf-8")
    monkeypatch.setattr(train.methods.objectives, "__path__", [*train.methods.objectives.__path__, str(tmp_path)])
    yield tmp_path
    sys.modules.pop("train.methods.objectives.focal", None)


@pytest.mark.parametrize("name", ["vanilla", "cmo"])
def test_the_objective_and_its_recipe_train(focal: Path, data: Path, name: str) -> None:
    recipe = f"--recipe={focal / 'focal.yaml'}"
    changes = [f"--data.train={data / 'train'}", f"--data.test={data / 'test'}", "--batch_size=8", "--max_steps=2"]
    options = parse(
        [recipe, *changes, f"--method.name={name}", f"--run_dir={focal / 'run'}", "--trackers=[]", "--device=cpu"]
    )
    assert (options.method_name, options.method.objective, options.method.gamma) == (name, "focal", 2.0)
    run = make_run(options)
    before = run.trainer.bare_model.linear.weight.detach().clone()
    assert take_steps(run) == 2
    assert not torch.equal(run.trainer.bare_model.linear.weight, before)


def test_its_loss_is_the_papers_and_its_shares_add_up(focal: Path) -> None:
    method = make_method("vanilla", context((4, 2, 1)), objective="focal", gamma=1.5)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 3))
    images, labels = random_images(7), [0, 1, 2, 0, 0, 1, 2]
    output = loss_of(method, model, micro_step(0, {"original": (images, labels)}))
    p = output.logits.softmax(dim=1)[range(7), labels]
    torch.testing.assert_close(output.loss, (-((1 - p) ** 1.5) * p.log()).mean())
    parts = [
        loss_of(method, model, micro_step(0, {"original": (images, labels)}, None, part, 3)).loss for part in range(3)
    ]
    torch.testing.assert_close(torch.stack(parts).sum(), output.loss)


WHOLE = '''
class Scaled(Objective):
    """Cross entropy by a factor."""

    Options = FocalOptions
    own_stage = Stage

    def values(self, plan):
        return {}

    def loss(self, model, step):
        batch = step.batches["original"]
        logits = model(self.context.input_builder.plain(batch.images[0]))
        rows = self.options.gamma * cross_entropy(logits, batch.labels) * batch.weights
        return StepOutput(rows.sum() / step.global_batch_size, logits)
'''


def test_a_whole_method_of_ones_own_is_named_by_module_and_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imports = "from train.methods.base import StepOutput\nfrom train.methods.parts import Stage\n"
    (tmp_path / "my_whole.py").write_text(block("python") + imports + WHOLE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    method = make_method("my_whole:Scaled", context((4, 2, 1)), gamma=3.0)
    model = method.build_model(ModelOptions(width=4), seed=0)
    output = loss_of(method, model, micro_step(0, {"original": (random_images(6), [0, 1, 2, 0, 1, 2])}))
    expected = 3 * torch.nn.functional.cross_entropy(output.logits, torch.tensor([0, 1, 2, 0, 1, 2]))
    torch.testing.assert_close(output.loss, expected)
    with pytest.raises(ValueError, match="my_whole:Scaled is a whole method"):
        make_method("my_whole:Scaled", context((4, 2, 1)), mixing="paste")
    with pytest.raises(ValueError, match="my_whole:FocalOptions: expected Mixing or Objective or Stage"):
        make_method("my_whole:FocalOptions", context((4, 2, 1)))
    assert make_method("my_whole:Focal", context((4, 2, 1)), mixing="paste").mixing.mixes
    sys.modules.pop("my_whole", None)
