"""Trains the embedded base in slices: `torchrun --nproc-per-node=N -m benchmarks.embedded.run …` (see README.md)."""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.embedded.classifier import Classifier, accuracy, train_classifier
from benchmarks.embedded.config import build_text_encoders, build_unet, build_vae
from benchmarks.embedded.data import load_tar
from benchmarks.embedded.export import assemble, pack, unpack
from benchmarks.embedded.perceptual import Perceptual
from benchmarks.embedded.runtime import World, join_world, read, write
from benchmarks.embedded.scenes import SceneSampler, render
from benchmarks.embedded.score import SHOWN, generate, make_asks, save_grid, score
from benchmarks.embedded.stock import Stock, build_stock
from benchmarks.embedded.unet import Networks, UnetRecipe, UnetTrainer, check_text_states
from benchmarks.embedded.vae import VaeRecipe, decode, encode, normalise, reconstruction_psnr, train_vae

HERE = Path(__file__).resolve().parent


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tar", type=Path, required=True, help="emoji_rgba128.tar (data.build_tar makes it)")
    parser.add_argument("--trunk", type=Path, required=True, help="perceptual trunk (perceptual.extract makes it)")
    parser.add_argument("--tokenizer", type=Path, default=HERE.parents[1] / "trainers" / "embedded" / "base")
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--deadline", type=float, help="unix time at which this slice must have ended")
    parser.add_argument("--vae-seconds", type=float, default=230)
    parser.add_argument("--classifier-seconds", type=float, default=35)
    parser.add_argument("--reserve", type=float, default=40, help="seconds kept for scoring and writing")
    parser.add_argument("--final", action="store_true", help="last slice: the learning rate falls to zero")
    parser.add_argument("--pieces", type=Path, help="start from an earlier slice's pieces (its machine is gone)")
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--dry-run", action="store_true", help="every stage at toy sizes, for a CPU")
    return parser.parse_args()


def vae_stage(stock: Stock, world: World, args: argparse.Namespace) -> dict[str, float]:
    """Trains or loads the autoencoder; returns its measured figures."""
    path, vae = args.checkpoints / "vae.pt", args.networks["vae"]
    figures: dict[str, float] = {}
    if not path.exists() and args.vae_seconds > 0:
        recipe = replace(VaeRecipe(), batch=4) if args.dry_run else VaeRecipe()
        sampler = SceneSampler(stock.bank, stock.tables, 100 + world.rank)
        trunk = Perceptual(args.trunk).to(world.device, torch.bfloat16)
        train_vae(vae, sampler, trunk, world, recipe, args.vae_seconds)
        scenes = SceneSampler(stock.bank, stock.tables, 9).sample(32 if args.dry_run else 2048)
        normalise(vae, render(stock.bank, scenes))
        if world.main:
            write(path, {"vae": vae.state_dict()})
        world.barrier()
    elif path.exists():
        vae.load_state_dict(read(path, torch.device("cpu"))["vae"])
    vae.to(world.device).requires_grad_(False).eval()
    unseen = stock.unseen_pictures(8 if args.dry_run else 1024)
    figures["psnr_unseen"] = reconstruction_psnr(vae, unseen)
    half_type = torch.float16 if world.device.type == "cuda" else torch.float32
    half_vae = build_vae().to(world.device, half_type)
    half_vae.load_state_dict(vae.state_dict())
    with torch.no_grad():
        back = decode(half_vae, encode(half_vae, unseen[:64].to(half_type))[0].to(half_type)).float()
    figures["fp16_nonfinite"] = float((~back.isfinite()).sum())
    world.say("vae", figures)
    if world.main:
        shown = torch.cat([unseen[:16], back[:16].clamp(-1, 1)])
        save_grid(shown / 2 + 0.5, 16, args.out / "vae.png")
    return figures


def classifier_stage(stock: Stock, world: World, args: argparse.Namespace) -> dict[str, float]:
    """Trains or loads the scoring classifier; returns its accuracy."""
    path, model = args.checkpoints / "classifier.pt", args.networks["classifier"]
    if path.exists():
        model.load_state_dict(read(path, torch.device("cpu"))["classifier"])
    elif args.classifier_seconds > 0:
        sampler = SceneSampler(stock.bank, stock.tables, 200 + world.rank)
        batch = 8 if args.dry_run else 256
        train_classifier(model, args.networks["vae"], sampler, world, args.classifier_seconds, batch)
        if world.main:
            write(path, {"classifier": model.state_dict()})
        world.barrier()
    model.to(world.device).requires_grad_(False).eval()
    fresh = SceneSampler(stock.bank, stock.tables, 8)
    top1, top5 = accuracy(model, fresh, 1 if args.dry_run else 8, 8 if args.dry_run else 256)
    world.say(f"classifier on fresh scenes: top-1 {top1:.4f} top-5 {top5:.4f}")
    return {"classifier_top1": top1, "classifier_top5": top5}


def unet_stage(stock: Stock, world: World, args: argparse.Namespace) -> UnetTrainer:
    """Trains the denoiser and text encoders up to the deadline's reserve."""
    parts, path = args.networks, args.checkpoints / "unet.pt"
    networks = Networks(parts["unet"], parts["text_1"], parts["text_2"])
    recipe = replace(UnetRecipe(), batch=4 * world.size, pool=8) if args.dry_run else UnetRecipe()
    sampler = SceneSampler(stock.bank, stock.tables, 300)
    trainer = UnetTrainer(networks, parts["vae"], sampler, world, recipe)
    if path.exists():
        trainer.load(path)
        world.say("resumed at step", trainer.step)
    sampler.generator.manual_seed(300 + world.rank + 16 * trainer.step)
    torch.manual_seed(400 + world.rank + 16 * trainer.step)
    difference = check_text_states(networks, sampler.sample(64).ids)
    world.say(f"text path differs from the stock encoders by {difference:.2e}")
    if not difference < 1e-2:
        raise RuntimeError("text_states no longer computes what the stock text encoders compute")
    trainer.train(args.deadline - time.time() - args.reserve, args.final, path)
    trainer.ema.swap()
    return trainer


def score_stage(stock: Stock, world: World, args: argparse.Namespace, figures: dict[str, float]) -> None:
    """Scores the averaged weights with the stock pipeline in fp16; writes grids and figures."""
    parts = args.networks
    copies = {"vae": build_vae(), "unet": build_unet()} | dict(
        zip(("text_1", "text_2"), build_text_encoders(), strict=True)
    )
    for name, copy in copies.items():
        copy.load_state_dict(parts[name].state_dict())
    pipe = assemble(copies["vae"], copies["unet"], copies["text_1"], copies["text_2"], args.tokenizer)
    pipe.to(world.device, torch.float16 if world.device.type == "cuda" else torch.float32)
    asks = make_asks(stock.names, stock.styles_of(), 12 if args.dry_run else args.prompts)
    guidances = ((4.5, 3.0), (6.0,)) if world.size == 2 else ((4.5, 3.0, 6.0),)
    for guidance in guidances[world.rank] if args.final else guidances[world.rank][:1]:
        images = generate(pipe, [a.prompt for a in asks], guidance)
        result = score(images, asks, parts["classifier"], world.device)
        print("score", guidance, json.dumps(result), flush=True)
        with (args.out / "scores.jsonl").open("a") as file:
            file.write(json.dumps(figures | {"guidance": guidance} | result) + "\n")
        if guidance == 4.5:
            shown = generate(pipe, [p for p in SHOWN for _ in range(2)])
            save_grid(torch.cat([shown, images[:72]]), 12, args.out / "samples.png")


def main() -> None:
    """Runs every stage that is not done yet, within the deadline."""
    args, world = parse(), join_world()
    args.deadline = args.deadline or time.time() + 560
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1000 + world.rank)
    keep_every = 40 if args.dry_run else 1
    stock = build_stock(load_tar(args.tar), args.tokenizer / "tokenizer", world.device, keep_every)
    world.say(
        f"{len(stock.names)} concepts, {len(stock.bank.concept)} pictures, {world.size} ranks on {world.device.type}"
    )
    text_1, text_2 = build_text_encoders()
    args.networks = {
        "vae": build_vae(), "unet": build_unet(), "text_1": text_1, "text_2": text_2,
        "classifier": Classifier(len(stock.names)),
    }  # fmt: skip
    if args.pieces is not None:
        unpack(args.networks, args.pieces)
    figures = vae_stage(stock, world, args)
    figures |= classifier_stage(stock, world, args)
    trainer = unet_stage(stock, world, args)
    figures |= {"steps": float(trainer.step), "scenes_seen": trainer.step * float(trainer.recipe.batch)}
    if world.main:
        pack(args.networks, args.out)
    score_stage(stock, world, args, figures)
    world.barrier()
    world.say("slice done, seconds to the deadline:", math.floor(args.deadline - time.time()))


if __name__ == "__main__":
    main()
