"""What cannot work is refused in one line, before an image is decoded or a folder made."""

import shutil

import pytest
from PIL import Image

from headstart.cli import main
from headstart.verbs import pretraining

RESNET = "--model timm/resnet18 --model-args.channels=[8,8,8,8] --model-args.layers=[1,1,1,1]"
VIT = "--model timm/vit_tiny_patch16_224 --model-args.depth=1 --model-args.embed_dim=24 --model-args.num_heads=3"


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Return a folder of data sets: one image, copied, because nothing of it may be read."""
    root = tmp_path_factory.mktemp("folders")
    Image.new("RGB", (16, 16)).save(root / "image.png")
    for folder, count in {
        "flat": 8,
        "one/cat": 8,
        "other/train/cat": 8,
        "other/test/cat": 4,
        "other/test/dog": 4,
        "singles/train/cat": 1,
        "singles/train/dog": 1,
        "singles/train/cow": 1,
        "singles/test/cat": 1,
        "planes/train/background": 9,
        "planes/train/plane": 3,
        "planes/test/plane": 1,
        "lonely": 1,
    }.items():
        for number in range(count):
            (root / folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(root / "image.png", root / folder / f"{number}.png")
    (root / "empty").mkdir()
    (root / "unfinished").mkdir()
    (root / "unfinished" / "config.yaml").write_text("data: digits\n")
    (root / "text.pth").write_text("not weights")
    (root / "text.txt").write_text("not weights")
    return root


REFUSED = {
    # labels
    "--data flat --method supcon": ["data: flat has no labels", "method: supcon learns from labels"],
    "--data flat --method supcon-pairs": ["data: flat has no labels"],
    "--data flat --method supcon-anchor": ["data: flat has no labels"],
    "--data one --method supcon": ["data: one is a folder with one class, 'cat'; at least two"],
    "--data other --method supcon": ["data: all labelled training images are of class 'cat' (allowed: two classes"],
    "--data other --method simclr --sampling balanced": ["data: all labelled", "sampling: balanced needs labels"],
    "--data flat --method simclr --sampling balanced": ["data: flat has no labels", "sampling: balanced needs labels"],
    "--method simclr --labels 5": ["labels: simclr learns from no labels (allowed: all"],
    "--method supcon --labels 500": ["labels: 500 per class", "(allowed: 1 to 104"],
    "--method supcon --labels 101%": ["labels: '101%' is no budget (allowed:"],
    "--method supcon --labels 0": ["labels: '0' is no budget"],
    "--method supcon --labels=-5": ["labels: '-5' is no budget"],
    "--method supcon-pairs --labels 1": ["labels: no class has two labelled images (allowed for supcon-pairs: 2"],
    "--data singles --method supcon-pairs": ["labels: no class has two labelled images"],
    # sampling
    "--method simclr --sampling anchored": ["sampling: anchored does not go with simclr (allowed: auto)"],
    "--method supcon-anchor --sampling balanced": ["sampling: balanced does not go with supcon-anchor"],
    "--method simclr --sampling random": ["sampling: input should be 'shuffled', 'balanced' or 'anchored'"],
    # batches
    "--method barlow-twins --batch-size 2": ["batch_size: 2 is too small (allowed: 3 or more"],
    "--method simclr --batch-size 1": ["batch_size: 1 is too small (allowed: 3 or more"],
    "--method simclr --batch-size 4 --accumulate 2": ["batch_size: 4 is too small (allowed: 6 or more"],
    "--method simclr --batch-size 10 --accumulate 3": ["batch_size: 10 cannot be cut into accumulate = 3"],
    "--method simclr --batch-size 33 --devices 2": ["batch_size: 33 cannot be cut into 2 pieces", "multiples of 2"],
    "--method simclr --batch-size 5000": ["batch_size: 5000 is larger than the 1079 images (allowed: up to 1079"],
    "--method moco --batch-size 8": ["batch_size: 8 images in 8 splits", "(allowed: 16 and more, or"],
    "--method moco --batch-size 16 --accumulate 2": ["batch_size: 8 images in 8 splits"],
    "--method densecl --batch-size 8": ["batch_size: 8 images in 8 splits"],
    "--method supcon-anchor --batch-size 3": ["batch_size: 3 is too small for 1 anchors", "(allowed: 4 and more)"],
    "--method supcon-anchor --batch-size 12 --accumulate 4": ["batch_size: 3 is too small for 1 anchors"],
    "--method supcon-anchor --method-args.anchors 64": ["batch_size: 128 is too small for 64 anchors"],
    "--method supcon-pairs --batch-size 5": ["batch_size: 5 images", "an even number, or more than 10)"],
    "--data lonely --method simclr": ["data: 1 images to pretrain on (allowed: 3 or more)"],
    # queues and prototypes
    "--method moco --method-args.queue 5000": ["method_args.queue: 5000 is larger than the 1079 images (allowed: 1 to"],
    "--method nnclr --method-args.queue 5000": ["method_args.queue: 5000 is larger than the 1079 images"],
    "--method moco --method-args.queue 0": ["method_args.queue: input should be greater than or equal to 1"],
    "--method moco --method-args.queue=-5": ["method_args.queue: input should be greater than or equal to 1"],
    "--method moco --method-args.queue true": ["method_args.queue: a number is needed, not yes or no"],
    "--method swav --batch-size 32 --method-args.queue 0": [
        "method_args.prototypes: 53 are more than the batch of 32 and the queue of 0 (allowed: a queue of 21 and more"
    ],
    "--method swav --limit 50 --method-args.prototypes 200": ["method_args.prototypes: 200", "(allowed: up to 60"],
    # background
    "--method supcon-anchor --method-args.background sky": ["method_args.background: unknown 'sky' (allowed: 0, 1,"],
    "--data planes --method supcon-anchor --method-args.anchors 3 --batch-size 8": [
        "method_args.anchors: 3, but there are 2 labelled images of an object (allowed: 1 to 2)"
    ],
    "--method supcon-anchor --labels 2 --method-args.anchors 3": ["method_args.anchors: 3", "(allowed: 1 to 2)"],
    "--data planes --method supcon-anchor --method-args.background planes --batch-size 8": [
        "method_args.background: unknown 'planes', did you mean 'plane'? (allowed: background, plane, any other)"
    ],
    # transformers
    "--method mae": ["model: mae needs a vision transformer, timm/resnet18 is none", "or auto)"],
    "--method mae --model torchvision/resnet18": ["model: mae needs a vision transformer, torchvision"],
    "--method mae VIT --method-args.masked 0": ["method_args.masked: 0.0 of 4 patches is none (allowed: up to 1"],
    "--method mae VIT --method-args.decoder_heads 5": ["method_args.decoder_dim: 192", "multiples of 20)"],
    "--method mae VIT --image-size 4": ["method_args.masked: 0.75 of 1 patches is none", "images of two patches"],
    "--method mae VIT --views dino-local": ["views: dino-local is of a smaller size (allowed: views of the whole size"],
    # teachers
    "--method distill --method-args.teacher nowhere.pth": ["method_args.teacher: nothing is called nowhere.pth"],
    "--method distill --method-args.teacher none": ["method_args.teacher: nothing is called none"],
    "--method distill --method-args.teacher empty": ["method_args.teacher: ", "empty is no run"],
    "--method distill --method-args.teacher unfinished": ["method_args.teacher: ", "unfinished is not finished"],
    "--method distill --method-args.teacher text.pth": ["method_args.teacher: ", "is damaged"],
    "--method distill --method-args.teacher text.txt": ["method_args.teacher: ", "(allowed: NAME.safetensors"],
    "--method distill --method-args.teacher timm/resnet18.nope": ["teacher: unknown", "timm/resnet18.a1_in1k"],
    "--method distill --method-args.teacher torchvision/resnet19": ["did you mean 'torchvision/resnet18'?"],
    # views
    "--method simclr --views none": ["views: none makes the views of an image equal"],
    "--method dino --views 2*none": ["views: none makes the views of an image equal"],
    "--method simclr --views simclr,simclr,simclr": ["views: 3 presets for 2 views (allowed: one, or"],
    "--method dino --views 1*simclr": ["views: 1 presets for 2 views (allowed: 2 or more"],
    "--method mae VIT --views mae,mae": ["views: 2 presets for 1 views"],
    "--method simclr --views 6*nope": ["views: unknown 'nope'"],
    "--method simclr --views 0*simclr": ["views: '0*simclr' is no preset (allowed: a name, or a number from 1 to 99"],
    "--method dino --views ²*simclr": ["views: '²*simclr' is no preset"],
    "--method dino --views 99999999999*simclr": ["views: '99999999999*simclr' is no preset"],
    "--method simclr --views simclr,": ["views: unknown ''"],
    # numbers and names
    "--method simclr --epochs 0": ["epochs: input should be greater than or equal to 1 (or 'auto'), not '0'"],
    "--method simclr --health-every 0": ["health_every: input should be greater than or equal to 1"],
    "--method simclr --on-collapse explode": ["on_collapse: input should be 'warn' or 'stop', not 'explode'"],
    "--method simclr --betas 0.9,1": ["betas.1: input should be less than 1"],
    "--method simclr --clip-gradient 0": ["clip_gradient: input should be greater than 0"],
    "--method simclr --include val,val": ["include: val is given twice (allowed: val, test, each once)"],
    "--method simclr --include train": ["include.0: input should be 'val' or 'test', not 'train'"],
    "--method barlow_twins": ["method: unknown 'barlow_twins', did you mean 'barlow-twins'?"],
    "--method simclr --method-args.momentum 0.9": ["method_args: unknown 'momentum' (allowed: temperature,"],
    "--method moco --method-args.temprature 1": ["method_args: unknown 'temprature', did you mean 'temperature'?"],
    "--method moco --method-args.temperature warm": ["method_args.temperature: input should be a valid number"],
    "--method moco --method-args.temperature .nan": ["method_args.temperature: input should be a finite number"],
    "--method moco --method-args.momentum 1.5": ["method_args.momentum: input should be less than or equal to 1,"],
    "--method moco --method-args.symmetric maybe": ["method_args.symmetric: input should be a valid boolean"],
}  # fmt: skip


@pytest.mark.parametrize("line", REFUSED)
def test_a_mistake_is_one_line_and_leaves_nothing(line, folders, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(folders)
    monkeypatch.setattr(pretraining, "ViewLoader", lambda **named: pytest.fail("images were read"))
    words = line.replace("VIT", VIT).split()
    words = [*([] if "--data" in words else ["--data", "digits"]), *words]
    words = [*([] if "--model" in words else RESNET.split()), *words]
    assert main(["pretrain", "--out", str(tmp_path / "out"), *words]) == 2
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.startswith("headstart: ")
    assert said.err.count("\n") == 1
    assert [part for part in REFUSED[line] if part not in said.err] == []
    assert not (tmp_path / "out").exists()
