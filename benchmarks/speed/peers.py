"""The peers' contestants: PEFT and LyCORIS on diffusers' UNet, stepped as diffusers' SDXL LoRA script steps.

Base in bf16, factors in fp32, autocast, noise and timesteps drawn in the step, gradients clipped, AdamW. In their
favour: AdamW is the fused one, nothing waits for the device, and latents and text states are cached. "Compiled" is
diffusers' own compile_repeated_blocks (the transformer blocks, where nearly all adapted layers are).
"""

from __future__ import annotations

import logging
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.speed.model import Setting
from benchmarks.speed.ours import FIRST_LAYER

Compiled = Literal["no", "blocks", "whole"]
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
_ATTENTION_PATHS = r".*attn\d\.to_(q|k|v|out\.0)$"


class PeerStep:
    """One peer's training step over a UNet of its own."""

    note = ""

    def __init__(self, setting: Setting, kind: str, compiled: Compiled = "no", rank: int = 16) -> None:
        self.setting, self.unet = setting, setting.unet().train()
        self.network: Any = None
        self.parameters = self._adapt(kind, rank)
        self.trainable = sum(parameter.numel() for parameter in self.parameters)
        on_gpu = setting.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, fused=on_gpu or None) if self.parameters else None
        self.scheduler = setting.scheduler()
        self.scheduler.alphas_cumprod = self.scheduler.alphas_cumprod.to(setting.device)
        self.latents, self.text = setting.latents(setting.batch_size), setting.text_states(setting.batch_size)
        self.time_ids = setting.time_ids(setting.batch_size)
        self._forward = self._compile(compiled)

    def _adapt(self, kind: str, rank: int) -> list[nn.Parameter]:
        if kind == "frozen":
            layer = self.unet.get_submodule(FIRST_LAYER)
            layer.register_forward_hook(lambda _module, _args, y: y.requires_grad_())
            return []
        library, _, method = kind.partition("-")
        parameters = self._peft(method, rank) if library == "peft" else self._lycoris(method, rank)
        for parameter in parameters:
            parameter.data = parameter.data.float()
        return parameters

    def _peft(self, method: str, rank: int) -> list[nn.Parameter]:
        import peft

        config = peft.LoraConfig(
            r=rank,
            lora_alpha=rank,
            init_lora_weights="gaussian",
            use_dora=method == "dora",
            target_modules=ATTENTION,
        )
        self.unet.add_adapter(config)
        return [parameter for parameter in self.unet.parameters() if parameter.requires_grad]

    def _lycoris(self, method: str, rank: int) -> list[nn.Parameter]:
        logging.getLogger("LyCORIS").setLevel(logging.ERROR)
        import lycoris
        from lycoris.config import PRESET

        PRESET["speed"] = {"enable_conv": False, "target_module": [], "target_name": [_ATTENTION_PATHS]}
        algorithm = {"lora": "locon", "lokr": "lokr"}[method]
        factor = {"factor": 8} if method == "lokr" else {}
        network = lycoris.create_lycoris(
            self.unet, 1.0, linear_dim=rank, linear_alpha=rank, algo=algorithm, preset="speed", **factor
        )
        network.apply_to()
        self.network = network.to(self.setting.device)
        return [parameter for parameter in network.parameters() if parameter.requires_grad]

    def _compile(self, compiled: Compiled) -> Any:
        if compiled == "blocks":
            self.unet.compile_repeated_blocks()
        return torch.compile(self.unet) if compiled == "whole" else self.unet

    def step(self) -> None:
        noise = torch.randn_like(self.latents)
        steps = int(self.scheduler.config["num_train_timesteps"])
        timesteps = torch.randint(0, steps, (len(noise),), device=noise.device)
        noisy = self.scheduler.add_noise(self.latents, noise, timesteps).to(self.setting.dtype)
        conditions = {"text_embeds": self.text.pooled, "time_ids": self.time_ids}
        with torch.autocast(noise.device.type, torch.bfloat16, enabled=self.setting.dtype == torch.bfloat16):
            predicted = self._forward(
                noisy, timesteps, self.text.context, added_cond_kwargs=conditions, return_dict=False
            )[0]
        F.mse_loss(predicted.float(), noise.float()).backward()
        if self.optimizer is not None:
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    def close(self) -> None:
        torch._dynamo.reset()
