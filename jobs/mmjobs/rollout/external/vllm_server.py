"""`python -m mmjobs.rollout.external.vllm_server`: a server whose engine is vLLM.

vLLM's own server takes no token ids together with images, and answers must come from exactly the prompt that is learnt
from; so this one drives vLLM's engine itself. It is the only module that imports vLLM.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mmjobs.model.checksum import checksum
from mmjobs.rollout.external.messages import Answer, Question, Settings
from mmjobs.rollout.external.serve import arguments, serve
from mmlaunch.run.paths import SERVED

_NEVER = -100.0
"""What is added to the score of a token that is never drawn."""
_CACHES = ("reset_prefix_cache", "reset_mm_cache", "reset_encoder_cache")


class VllmBackend:
    """vLLM's engine, step by step, so that requests of several ranks are answered together."""

    name = "vllm"

    def __init__(self, model: Path, gpus: int, dtype: str, temperature: float, options: dict[str, Any]) -> None:
        import vllm

        self._vllm, self.release = vllm, str(vllm.__version__)
        arguments = vllm.EngineArgs(
            model=str(model),
            tensor_parallel_size=max(1, gpus),
            dtype=dtype,
            worker_extension_cls=f"{__name__}.Weights",
            # At temperature 1 both are the same but for forbidden tokens, which the trainer does not leave out either.
            logprobs_mode="raw_logprobs" if temperature == 1 else "processed_logprobs",
            **{name.replace("-", "_"): value for name, value in options.items()},
        )
        self._engine = vllm.LLMEngine.from_engine_args(arguments)
        missing = [name for name in (*_CACHES, "collective_rpc") if not hasattr(self._engine, name)]
        if missing:
            raise SystemExit(f"vLLM {self.release} cannot {', '.join(missing)}, which new weights need")

    def load(self, folder: Path, moved: Callable[[], None]) -> dict[str, list[int]]:
        checksums: dict[str, list[int]] = {}
        files = json.loads((folder / SERVED).read_text())["files"]
        self._engine.collective_rpc("policy_begin")
        for file in files:
            of_workers = self._engine.collective_rpc("policy_read", args=(str(folder / file),))
            checksums |= of_workers[0]
            moved()
        if untouched := sorted({name for names in self._engine.collective_rpc("policy_end") for name in names}):
            raise ValueError(f"{len(untouched)} weights of the engine's model stay as they were, e.g. {untouched[0]}")
        for cache in _CACHES:
            getattr(self._engine, cache)()
            moved()
        return checksums

    def add(self, key: str, prompt: Question, seed: int, settings: Settings) -> None:
        images = [Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB") for image in prompt.images]
        asked: dict[str, Any] = {"prompt_token_ids": prompt.ids}
        if images:
            asked |= {"multi_modal_data": {"image": images}, "mm_processor_kwargs": prompt.options}
        self._engine.add_request(key, asked, self._sampling(seed, settings))

    def _sampling(self, seed: int, settings: Settings) -> Any:
        return self._vllm.SamplingParams(
            seed=seed,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k or -1,
            min_tokens=settings.min_new_tokens,
            max_tokens=settings.max_new_tokens,
            stop_token_ids=settings.stops,
            ignore_eos=True,  # it is one of the stop tokens, where the trainer takes it for one
            logit_bias=dict.fromkeys(settings.forbidden, _NEVER),
            logprobs=0,  # of the drawn token alone
            detokenize=False,
            output_kind=self._vllm.sampling_params.RequestOutputKind.FINAL_ONLY,
        )

    def step(self) -> list[tuple[str, list[int], Answer]]:
        answers = []
        for output in self._engine.step():
            if not output.finished:
                continue
            (made,) = output.outputs
            ids = list(made.token_ids)
            log_probs = [of_token[token].logprob for token, of_token in zip(ids, made.logprobs, strict=True)]
            answers.append((output.request_id, list(output.prompt_token_ids), Answer(ids, log_probs)))
        return answers


class Weights:
    """What vLLM adds to each of its workers: reading new weights into the model that is there."""

    model_runner: Any
    device: Any

    def policy_begin(self) -> None:
        """New weights are about to be read."""
        self._touched: set[str] = set()

    def policy_read(self, file: str) -> dict[str, list[int]]:
        """Read one file into the model; the checksums of its tensors."""
        from safetensors import safe_open

        checksums: dict[str, list[int]] = {}

        def tensors() -> Iterator[tuple[str, torch.Tensor]]:
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118  it is no mapping
                    tensor = opened.get_tensor(name).to(self.device)
                    checksums[name] = list(checksum(tensor))
                    yield name, tensor

        read = self.model_runner.model.load_weights(tensors())
        # Some models do not say what they have read: then the checksums alone have to do.
        self._touched |= {name for name, _ in self.model_runner.model.named_parameters()} if read is None else set(read)
        return checksums

    def policy_end(self) -> list[str]:
        """The weights of the model that no file had."""
        return sorted({name for name, _ in self.model_runner.model.named_parameters()} - self._touched)


def main() -> None:
    """Serve until the job ends."""
    given = arguments()
    made = (given.model, given.gpus, given.dtype, given.temperature, given.options)
    serve(lambda: VllmBackend(*made), given.host, given.port)


if __name__ == "__main__":
    main()
