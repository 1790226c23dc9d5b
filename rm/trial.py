"""A student: a small causal model that is fine-tuned on some responses, and then measures the likelihood of others.

Adapters (LoRA) are trained by transformers' Trainer and removed again, so every fine-tune begins with the same weights. Training
and likelihood count only the tokens of responses and their end token; prompts are read but not learnt.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PrinterCallback, Trainer, TrainingArguments, set_seed

from rm.checkpoint.load import load_tokenizer, quiet_transformers
from rm.conversations import Conversation, UnusableError, to_messages, tools_in
from rm.engine.device import native_bfloat16
from rm.identity import ModelError, effective_max_length
from rm.messages import map_texts
from rm.text.special_tokens import SpecialTokens
from rm.text.template_limits import render_chat
from rm.text.templates import render_plain

log = logging.getLogger(__name__)

PLAIN = "plain"
_BATCH_TOKENS = 2048  # in a forward without gradients, padding included
_ANSWERS_AT_ONCE = 16
_ALPHA_OVER_RANK = 2
_IGNORED = -100  # a label that no loss counts


class Tokens(NamedTuple):
    """A prompt and a response as token ids: the first `prompt` of them are the prompt's."""

    ids: list[int]
    prompt: int

    @property
    def response(self) -> int:
        """The number of tokens of the response, its end token included."""
        return len(self.ids) - self.prompt


@dataclass(frozen=True)
class Tuning:
    """The settings of a fine-tune."""

    rank: int
    learning_rate: float
    seed: int


def into_steps(rows: Sequence[Tokens], tokens_per_step: int, steps: int) -> list[list[Tokens]]:
    """Divide rows, in order, into `steps` of about `tokens_per_step` response tokens each; the other rows are left out.

    Two fine-tunes then have the same steps and tokens, whatever the lengths of their responses. Raises `ValueError` for too few
    tokens.
    """
    parts: list[list[Tokens]] = [[] for _ in range(steps)]
    seen = 0
    for row in rows:
        if seen >= steps * tokens_per_step:
            break
        parts[seen // tokens_per_step].append(row)
        seen += row.response
    if seen < steps * tokens_per_step or not all(parts):
        raise ValueError(f"{seen} tokens are too few for {steps} steps of {tokens_per_step}")
    return parts


@dataclass
class Student:
    """A causal language model with its tokenizer."""

    model: Any
    tokenizer: Any
    max_length: int
    device: str

    @classmethod
    def load(cls, directory: Path, *, max_length: int, device: str) -> Student:
        """Load a student in float32. Raises `ModelError` for anything but a causal language model."""
        tokenizer = load_tokenizer(directory)
        try:
            with quiet_transformers():
                config = AutoConfig.from_pretrained(str(directory), trust_remote_code=False)
                model, info = AutoModelForCausalLM.from_pretrained(
                    str(directory),
                    config=config,
                    dtype=torch.float32,
                    use_safetensors=True,
                    trust_remote_code=False,
                    output_loading_info=True,
                )
        except (ValueError, OSError, RuntimeError) as error:
            raise ModelError(
                f"the student {str(directory)!r} cannot be loaded as a causal language model ({type(error).__name__}); choose "
                "one, such as HuggingFaceTB/SmolLM2-135M-Instruct"
            ) from error
        missing = sorted(info["missing_keys"])
        if missing or _looks_both_ways(model.eval()):
            what = f"lacks {len(missing)} of its weights ({missing[0]})" if missing else "reads later tokens as well"
            raise ModelError(
                f"the student {str(directory)!r} is not a causal language model: it {what}; choose one, such as "
                "HuggingFaceTB/SmolLM2-135M-Instruct"
            )
        student = cls(model.to(device).eval(), tokenizer, effective_max_length(directory, max_length), device)
        if student.layout == PLAIN:
            log.warning(
                "the student has no chat template: it reads the prompt as plain text (earlier turns as System:, Human: and "
                "Assistant: paragraphs), an empty line, the response, and the token that ends a text"
            )
        return student

    @property
    def layout(self) -> str:
        """The layout of prompts: `chat`, by the tokenizer's template, or `plain`."""
        return "chat" if getattr(self.tokenizer, "chat_template", None) else PLAIN

    def encode(self, prompt: Conversation, response: str) -> Tokens | None:
        """Encode a prompt and a response to at most `max_length` tokens; None if the template does not render them.

        A prompt keeps its last tokens, at most half of the length, and a response its first tokens. Special tokens spelled in
        either are read as text (`rm.text.special_tokens`).
        """
        special = self._special_tokens
        guarded = special.appear_in(response) or any(special.appear_in(content) for _, content in prompt)
        if guarded:
            prompt = tuple((role, map_texts(content, special.hide)) for role, content in prompt)
            response = map_texts(response, special.hide)
        try:
            front, end = self._lay_out(prompt, response)
        except UnusableError:
            return None
        ids = self._ids(front, guarded=guarded)[-self.max_length // 2 :]
        answer = self._ids(end, guarded=guarded)[: self.max_length - len(ids)]
        return Tokens(ids + answer, len(ids)) if answer else None

    @cached_property
    def _special_tokens(self) -> SpecialTokens:
        return SpecialTokens.of(self.tokenizer)

    def _lay_out(self, prompt: Conversation, response: str) -> tuple[str, str]:
        messages, own = to_messages(prompt, response), to_messages((), response)
        is_text = len(own) == 1 and own[0].keys() <= {"role", "content"}
        end = f"{own[-1]['content']}{self.tokenizer.eos_token or ''}"
        if self.layout == PLAIN:
            odd = any(message["role"] == "tool" or message.keys() - {"role", "content"} for message in messages)
            if odd or not is_text or tools_in(prompt) is not None:
                raise UnusableError("no_template_for_tools")
            return f"{render_plain(prompt)}\n\n", end
        try:
            front = render_chat(self.tokenizer, to_messages(prompt), tools_in(prompt), answer=True)
            whole = render_chat(self.tokenizer, messages, tools_in(prompt))
        except ModelError:
            raise
        except Exception as error:  # a template may raise any error
            raise UnusableError("template_error") from error
        if whole.startswith(front):
            return front, whole[len(front) :]
        if not is_text:  # only a template can render calls and several messages
            raise UnusableError("template_error")
        return front, end

    def _ids(self, text: str, *, guarded: bool) -> list[int]:
        if guarded:
            special = self._special_tokens
            [encoding] = special.encode([(special.reveal(text), None)], add_special_tokens=False)
            return list(encoding.ids)
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return ids

    @contextmanager
    def tuned(self, steps: Sequence[Sequence[Tokens]], tuning: Tuning) -> Iterator[None]:
        """Fine-tune on `steps`, one optimiser step each, for the duration of the `with` block."""
        from peft import LoraConfig, get_peft_model

        set_seed(tuning.seed)
        base = self.model
        self.model = get_peft_model(
            base,
            LoraConfig(
                task_type="CAUSAL_LM",
                r=tuning.rank,
                lora_alpha=_ALPHA_OVER_RANK * tuning.rank,
                lora_dropout=0.0,
                target_modules="all-linear",
            ),
        )
        try:
            with tempfile.TemporaryDirectory(prefix="bestkept-trial-") as scratch, quiet_transformers():
                arguments = self._arguments(scratch, len(steps), tuning)
                trainer = _StepTrainer(
                    model=self.model,
                    args=arguments,
                    train_dataset=list(steps),
                    data_collator=lambda parts: {"rows": parts[0]},
                )
                trainer.remove_callback(PrinterCallback)
                trainer.train()
            self.model.eval()
            yield
        finally:
            self.model = self.model.unload().eval()
            for parameter in self.model.parameters():
                parameter.requires_grad_(True)

    def _arguments(self, scratch: str, steps: int, tuning: Tuning) -> TrainingArguments:
        arguments = TrainingArguments(
            output_dir=scratch,
            max_steps=steps,
            per_device_train_batch_size=1,  # an item is a whole step
            learning_rate=tuning.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=math.ceil(0.1 * steps),
            use_cpu=self.device == "cpu",
            bf16=native_bfloat16(self.device),
            seed=tuning.seed,
            data_seed=tuning.seed,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            disable_tqdm=True,
        )
        if arguments.n_gpu > 1:
            arguments._n_gpu = 1  # with more, this process would copy the model to every GPU at every step
        return arguments

    @torch.inference_mode()
    def log_likelihoods(self, rows: Sequence[Tokens]) -> np.ndarray:
        """Return the mean log-likelihood of each response's tokens, in nats, float64 [rows]."""
        values = np.zeros(len(rows))
        for batch in _batches([len(row.ids) for row in rows]):
            inputs = {name: value.to(self.device) for name, value in _pad([rows[at] for at in batch]).items()}
            labels = inputs.pop("labels")[:, 1:]
            logits = self.model(**inputs).logits[:, :-1].float()
            counted = labels != _IGNORED
            picked = logits.gather(2, labels.clamp(min=0)[:, :, None])[:, :, 0] - logits.logsumexp(2)
            means = (picked * counted).sum(1, dtype=torch.float64) / counted.sum(1)
            values[batch] = means.cpu().numpy()
        return values

    @torch.inference_mode()
    def answers(self, prompts: Sequence[Conversation], *, seed: int, most_tokens: int) -> list[str]:
        """Sample one answer to each prompt, of at most so many tokens; an empty one if the prompt cannot be rendered."""
        set_seed(seed)
        texts = [""] * len(prompts)
        rows = {at: row for at, prompt in enumerate(prompts) if (row := self.encode(prompt, "a")) is not None}
        pad = self._pad_id
        for start in range(0, len(rows), _ANSWERS_AT_ONCE):
            batch = list(rows.items())[start : start + _ANSWERS_AT_ONCE]
            width = max(row.prompt for _, row in batch)
            ids = torch.full((len(batch), width), pad)
            seen = torch.zeros_like(ids)
            for line, (_, row) in enumerate(batch):
                ids[line, width - row.prompt :] = torch.tensor(row.ids[: row.prompt])
                seen[line, width - row.prompt :] = 1
            with quiet_transformers():
                made = self.model.generate(
                    input_ids=ids.to(self.device),
                    attention_mask=seen.to(self.device),
                    do_sample=True,
                    temperature=0.7,
                    top_p=0.95,
                    top_k=0,
                    max_new_tokens=most_tokens,
                    pad_token_id=pad,
                )
            answers = self.tokenizer.batch_decode(made[:, width:], skip_special_tokens=True)
            for (at, _), text in zip(batch, answers, strict=True):
                texts[at] = text.strip()
        return texts

    @property
    def _pad_id(self) -> int:
        ids = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(name for name in ids if name is not None)


class _StepTrainer(Trainer):  # type: ignore[misc]
    """Trains on steps of whole rows, each in batches of at most `_BATCH_TOKENS`: prompts and padding also take memory."""

    def training_step(
        self, model: Any, inputs: dict[str, list[Tokens]], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        model.train()
        rows = inputs["rows"]
        tokens = sum(row.response for row in rows)
        mean = torch.zeros((), device=self.args.device)
        for batch in _batches([len(row.ids) for row in rows]):
            part = [rows[at] for at in batch]
            padded = {name: value.to(self.args.device) for name, value in _pad(part).items()}
            with self.compute_loss_context_manager():
                loss = model(**padded).loss * (sum(row.response for row in part) / tokens)
            self.accelerator.backward(loss)
            mean += loss.detach()
        return mean


def _looks_both_ways(model: Any) -> bool:
    """Return whether a token's logits depend on the tokens after it, as with BERT under a language model's head."""
    one = torch.tensor([[1, 2, 3, 4]])
    with torch.inference_mode():
        first, second = (model(input_ids=ids).logits[0, 0] for ids in (one, torch.tensor([[1, 2, 3, 5]])))
    # experts compute their tokens together, so other tokens change the last bits of this one
    return bool((first - second).abs().max() > 1e-4 * first.std())


def _pad(rows: Sequence[Tokens]) -> dict[str, torch.Tensor]:
    """Return rows as a padded batch; labels are the tokens of the responses."""
    width = max(len(row.ids) for row in rows)
    ids = torch.zeros((len(rows), width), dtype=torch.long)
    seen, labels = torch.zeros_like(ids), torch.full_like(ids, _IGNORED)
    for line, row in enumerate(rows):
        ids[line, : len(row.ids)] = torch.tensor(row.ids)
        seen[line, : len(row.ids)] = 1
        labels[line, row.prompt : len(row.ids)] = torch.tensor(row.ids[row.prompt :])
    return {"input_ids": ids, "attention_mask": seen, "labels": labels}


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield indices of rows of similar length, longest first: padded, at most `_BATCH_TOKENS` a batch, or one row."""
    batch: list[int] = []
    for at in sorted(range(len(lengths)), key=lambda at: -lengths[at]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(at)
    if batch:
        yield batch
