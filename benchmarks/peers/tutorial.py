"""The usual tutorial's training: ImageFolder, DataLoader, float32, channels first; the network and recipe are ours."""

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from catdog.kernels.block import Block
from catdog.model import CNN, ModelConfig, build_model

SHAPE = ("stem_width", "body_width", "body_repeats", "dropout")
NUM_LOADERS = 0  # in the training process, which is DataLoader's default and fastest where each has one core


def losses(parameters, task):
    """Train one network; yield the validation loss after each epoch."""
    training, validation = loaders(parameters, task)
    model = make_network(parameters, task.image_size)
    loss_of = nn.CrossEntropyLoss(label_smoothing=parameters["label_smoothing"])
    optimizer = torch.optim.Adam(model.parameters(), lr=parameters["learning_rate"])
    scheduler = make_scheduler(parameters, optimizer, task.epochs * len(training))
    for _ in range(task.epochs):
        model.train()
        for x, y in training:
            optimizer.zero_grad()
            loss = loss_of(model(x), y)
            loss.backward()
            optimizer.step()
            scheduler.step()
        yield validate(model, validation)


def loaders(parameters, task):
    training = ImageFolder(f"{task.data}/train", transform_of(parameters["augmentation"], task.image_size))
    validation = ImageFolder(f"{task.data}/validation", transform_of("none", task.image_size))
    size = int(parameters["batch_size"])
    return (
        DataLoader(training, batch_size=size, shuffle=True, num_workers=NUM_LOADERS),
        DataLoader(validation, batch_size=size, num_workers=NUM_LOADERS),
    )


def transform_of(augmentation, size):
    """What our own augmentation of that name does, by torchvision."""
    steps = {
        "none": [],
        "flip": [transforms.RandomHorizontalFlip()],
        "crop": [
            transforms.RandomHorizontalFlip(),
            transforms.RandomAffine(degrees=0, translate=(0.05, 0.05), scale=(0.95, 1.18)),
        ],
    }
    last = [transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.25] * 3)]
    return transforms.Compose([transforms.Resize((size, size)), *steps[augmentation], *last])


def make_network(parameters, image_size):
    shape = {name: parameters[name] for name in SHAPE}
    return plain_network(ModelConfig(**shape, share_body=parameters["share_body"] == "true", image_size=image_size))


def plain_network(config: ModelConfig, seed: int = 0) -> CNN:
    """Build the network of PyTorch's layers and nothing of ours, channels first."""
    model = build_model(config, seed)
    for name, module in list(model.named_modules()):
        if isinstance(module, Block):
            ours, *others = module
            convolution = nn.Conv2d(ours.in_channels, ours.out_channels, kernel_size=3, padding=1)
            convolution.load_state_dict(ours.state_dict())
            model.set_submodule(name, nn.Sequential(convolution, *others))
    return model.to(memory_format=torch.contiguous_format)


def make_scheduler(parameters, optimizer, num_steps):
    if parameters["schedule"] == "cosine":
        return CosineAnnealingLR(optimizer, num_steps)
    return OneCycleLR(optimizer, parameters["learning_rate"], num_steps, cycle_momentum=False)


def validate(model, validation):
    model.eval()
    total, num_seen = 0.0, 0
    with torch.no_grad():
        for x, y in validation:
            total += nn.functional.cross_entropy(model(x), y, reduction="sum").item()
            num_seen += len(y)
    return total / num_seen
