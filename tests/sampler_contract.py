"""What every sampler must do, whoever decodes: the tests that `TestTransformers` and `TestVllm` both run."""

import pytest
import torch
from tiny_models import byte_tokenizer, tiny_model
from transformers import PreTrainedModel

from alignment_core.batching import TokenSequence, collate
from alignment_core.config import SamplingConfig
from alignment_core.logprobs import response_log_probs
from alignment_core.models import ComputeDtype
from alignment_core.records import Completion, Problem
from alignment_core.sampling import PromptRequest, Sampler, build_requests

TOKENIZER = byte_tokenizer("r>!")
EOS = TOKENIZER.eos_token_id
CONFIG = SamplingConfig(max_tokens=12, stop=("</answer>",), batch_size=8)
TEXTS = ["a", "a longer prompt", "mid one", "a", "yet another prompt of its own"]


def requests_of(texts: list[str], group: int = 1) -> list[PromptRequest]:
    problems = [Problem(id=f"p{i}", question="", prompt=text, ground_truth="") for i, text in enumerate(texts)]
    return build_requests(problems, TOKENIZER, group, 7, "test")


def ids_of(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def model_of(vocab_size: int | None = None, seed: int = 0) -> PreTrainedModel:
    """Four heads of 32, the smallest that vllm's kernels take."""
    return tiny_model(TOKENIZER, seed, vocab_size, hidden_size=128)


def ids_in(completions: list[Completion]) -> list[list[int]]:
    return [item.response_ids for item in completions]


class SamplerContract:
    """Subclasses say how to make the sampler, and how to have it say a script."""

    renormalised = False
    """Whether log-probs are of what may be drawn, rather than of the policy before the ban of EOS."""
    gives_entropy = True

    def sampler(
        self, model: PreTrainedModel, config: SamplingConfig = CONFIG, compute_dtype: ComputeDtype = "float32"
    ) -> Sampler:
        raise NotImplementedError

    def scripted(self, script: list[int], config: SamplingConfig = CONFIG, tail: int = 1) -> Completion:
        """What is sampled from a model that says `script` after the prompt `ab`, then `tail` for ever."""
        raise NotImplementedError

    def test_stop_string_ends_a_response_and_keeps_the_token_that_completed_it(self):
        script = [*ids_of("x </answe"), TOKENIZER.convert_tokens_to_ids("r>!"), *ids_of("zz")]
        done = self.scripted(script)
        assert done.response_ids == script[:-2]
        assert done.text == "x </answer>!"
        assert done.finish_reason == "stop"
        assert len(done.sampler_log_probs) == len(done.response_ids)

    def test_stop_string_spelled_byte_by_byte(self):
        done = self.scripted(ids_of(">a</answer>b"))
        assert (done.text, done.finish_reason) == (">a</answer>", "stop")

    def test_eos_stays_in_the_ids_and_out_of_the_text(self):
        done = self.scripted([*ids_of("hey"), EOS, *ids_of("more")])
        assert done.response_ids == [*ids_of("hey"), EOS]
        assert (done.text, done.finish_reason) == ("hey", "eos")

    def test_a_response_without_end_is_cut_at_max_tokens(self):
        done = self.scripted(ids_of("a" * 30))
        assert (done.text, done.finish_reason) == ("a" * 12, "length")

    def test_a_stop_on_the_last_token_is_a_stop(self):
        done = self.scripted(ids_of("abc</answer>zz"))
        assert (done.text, done.finish_reason) == ("abc</answer>", "stop")

    def test_an_eos_on_the_last_token_is_an_eos(self):
        done = self.scripted([*ids_of("a" * 11), EOS])
        assert (done.text, done.finish_reason) == ("a" * 11, "eos")

    def test_the_first_min_tokens_end_nothing(self):
        short = SamplingConfig(max_tokens=12, stop=("?",), min_tokens=3)
        early_eos = self.scripted([EOS, EOS, EOS, EOS], short)
        assert early_eos.response_ids == [0, 0, 0, EOS]
        early_stop = self.scripted(ids_of("??????"), short)
        assert (early_stop.text, early_stop.finish_reason) == ("????", "stop")
        stop_gone_by = self.scripted(ids_of("?abc"), short, tail=EOS)
        assert (stop_gone_by.text, stop_gone_by.finish_reason) == ("?abc", "eos")
        # The stop string of the first two tokens is still near when another `?` comes; that one completes nothing.
        near = self.scripted(ids_of("b?cc?dd"), short.model_copy(update={"stop": ("b?",)}), tail=EOS)
        assert (near.text, near.finish_reason) == ("b?cc?dd", "eos")

    def test_non_ascii_stop_string(self):
        done = self.scripted(ids_of("aé。b"), SamplingConfig(max_tokens=12, stop=("。",)))
        assert (done.text, done.finish_reason) == ("aé。", "stop")

    def test_a_special_token_can_be_a_stop_string(self):
        done = self.scripted(
            [*ids_of("ab"), TOKENIZER.convert_tokens_to_ids("r>!")], CONFIG.model_copy(update={"stop": ("r>!",)})
        )
        assert (done.text, done.finish_reason) == ("abr>!", "stop")

    def test_prompt_and_names_come_back_as_they_were_asked(self):
        requests = requests_of(TEXTS, group=2)
        done = self.sampler(model_of()).sample(requests, CONFIG)
        for asked, got in zip(requests, done, strict=True):
            assert (got.problem_id, got.sample_index, got.prompt_ids) == (
                asked.problem_id,
                asked.sample_index,
                asked.prompt_ids,
            )

    def test_a_completion_depends_on_neither_batch_nor_order(self):
        requests = requests_of(TEXTS, group=4)
        sampler = self.sampler(model_of())
        together = sampler.sample(requests, CONFIG.model_copy(update={"batch_size": 64}))
        alone = sampler.sample(requests, CONFIG.model_copy(update={"batch_size": 1}))
        backwards = sampler.sample(requests[::-1], CONFIG.model_copy(update={"batch_size": 7}))[::-1]
        for other in (alone, backwards):
            assert ids_in(other) == ids_in(together)
            names = [(item.problem_id, item.sample_index) for item in other]
            assert names == [(f"p{i}", g) for i in range(5) for g in range(4)]
        assert len({tuple(item.response_ids) for item in together}) == len(together)

    def test_a_completion_depends_on_its_seed(self):
        sampler, (request,) = self.sampler(model_of()), requests_of(["one"])
        seeds = [PromptRequest("p", 0, request.prompt_ids, seed) for seed in (1, 2, 1, 2**62)]
        first, second, again, large = ids_in(sampler.sample(seeds, CONFIG))
        assert first == again
        assert len({tuple(first), tuple(second), tuple(large)}) == 3

    def test_rows_that_finish_at_different_times_do_not_disturb_each_other(self):
        common = SamplingConfig(max_tokens=40, stop=tuple("abcdefghij"), batch_size=64)
        requests = requests_of(TEXTS, group=12)
        sampler = self.sampler(model_of(), common)
        together = sampler.sample(requests, common)
        lengths = {len(item.response_ids) for item in together}
        alone = [sampler.sample([request], common)[0] for request in requests[::9]]
        assert len(lengths) > 10
        assert [item.response_ids for item in together[::9]] == ids_in(alone)

    @pytest.mark.parametrize("temperature", [1.0, 0.7])
    def test_sampler_log_probs_and_entropy_are_the_trainers(self, temperature: float):
        model = model_of(vocab_size=300)
        config = CONFIG.model_copy(update={"temperature": temperature, "min_tokens": 4})
        completions = self.sampler(model, config).sample(requests_of(TEXTS, group=3), config)
        batch = collate([TokenSequence(item.prompt_ids, item.response_ids) for item in completions], pad_id=0)
        scores = response_log_probs(model, batch, temperature, with_entropy=True, vocab_limit=len(TOKENIZER))
        with torch.no_grad():
            logits = model(batch.input_ids).logits[..., : len(TOKENIZER)] / temperature
        banned = torch.log1p(-logits.softmax(-1)[..., EOS])
        for item, log_probs, entropy, mask, rest in zip(
            completions, scores.log_probs, scores.entropy, batch.response_mask, banned, strict=True
        ):
            expected = log_probs[mask]
            if self.renormalised:
                expected[:4] -= rest[mask][:4]
            assert expected.tolist() == pytest.approx(item.sampler_log_probs, abs=1e-4)
            if self.gives_entropy:
                assert entropy[mask].mean().item() == pytest.approx(item.mean_entropy, abs=1e-4)
            else:
                assert item.mean_entropy is None

    def test_ids_beyond_the_tokenizer_are_never_sampled(self):
        model = model_of(vocab_size=400)
        with torch.no_grad():
            model.lm_head.weight[len(TOKENIZER) :] = model.lm_head.weight[:1] * 50
        completions = self.sampler(model).sample(requests_of(TEXTS, group=10), CONFIG)
        assert max(max(item.response_ids) for item in completions) < len(TOKENIZER)

    def test_greedy_is_the_argmax_of_a_plain_forward_pass(self):
        model = model_of()
        config = CONFIG.model_copy(update={"temperature": 0.0, "max_tokens": 5})
        request = requests_of(["some prompt"])[0]
        ids = list(request.prompt_ids)
        with torch.no_grad():
            for _ in range(5):
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert self.sampler(model, config).sample([request], config)[0].response_ids == ids[-5:]

    def test_top_p_draws_from_the_nucleus_alone(self):
        model = model_of()
        requests = [PromptRequest("p", n, ids_of("some prompt"), n) for n in range(64)]
        config = CONFIG.model_copy(update={"top_p": 0.2, "max_tokens": 1})
        with torch.no_grad():
            p = model(torch.tensor([requests[0].prompt_ids])).logits[0, -1, : len(TOKENIZER)].softmax(-1)
        ordered, ids = p.sort(descending=True)
        nucleus = set(ids[ordered.cumsum(-1) - ordered < 0.2].tolist())
        drawn = {ids[0] for ids in ids_in(self.sampler(model, config).sample(requests, config))}
        assert drawn <= nucleus
        assert len(drawn) > 1

    def test_frequencies_of_first_tokens_are_the_models(self):
        model, count = model_of(), 2000
        requests = [PromptRequest("p", n, ids_of("some prompt"), n) for n in range(count)]
        config = CONFIG.model_copy(update={"max_tokens": 1, "batch_size": 500})
        with torch.no_grad():
            p = model(torch.tensor([requests[0].prompt_ids])).logits[0, -1, : len(TOKENIZER)].softmax(-1)
        drawn = torch.tensor(ids_in(self.sampler(model, config).sample(requests, config)))[:, 0]
        likely = p * count >= 5
        seen, expected = torch.bincount(drawn, minlength=len(p))[likely], (p * count)[likely]
        chi_square = ((seen - expected) ** 2 / expected).sum().item()
        degrees = int(likely.sum()) - 1
        assert chi_square < degrees + 4 * (2 * degrees) ** 0.5

    def test_bfloat16_follows_the_weights_when_told(self):
        model = model_of()
        config = CONFIG.model_copy(update={"temperature": 0.0})
        wide = self.sampler(model, config).sample(requests_of(TEXTS), config)
        sampler = self.sampler(model, config, "bfloat16")
        before = sampler.sample(requests_of(TEXTS), config)
        assert before[0].sampler_log_probs[0] != wide[0].sampler_log_probs[0]
        model.load_state_dict(model_of(seed=1).state_dict())
        assert ids_in(sampler.sample(requests_of(TEXTS), config)) == ids_in(before)
        sampler.update_weights(model)
        assert ids_in(sampler.sample(requests_of(TEXTS), config)) != ids_in(before)
        assert model.dtype == torch.float32

    def test_every_text_is_handed_over_once_and_progress_ends_at_all(self):
        model = model_of().train()
        points: list[tuple[int, int]] = []
        texts: dict[int, str] = {}

        def on_finished(index: int, text: str) -> None:
            assert index not in texts
            texts[index] = text

        config = CONFIG.model_copy(update={"stop": tuple("abcdefgh"), "max_tokens": 30})
        done = self.sampler(model, config).sample(
            requests_of(TEXTS, 4), config, lambda *point: points.append(point), on_finished
        )
        assert [texts[index] for index in range(20)] == [item.text for item in done]
        assert points == sorted(points)
        assert points[-1] == (20, 20)
        assert model.training

    def test_no_requests_give_no_completions(self):
        assert self.sampler(model_of()).sample([], CONFIG) == []

    @pytest.mark.parametrize(
        ("prompt", "message"), [([], "has no token"), ([1] * 120, "exceed the model's 128 positions")]
    )
    def test_prompts_that_cannot_be_sampled_from_are_refused(self, prompt: list[int], message: str):
        sampler = self.sampler(model_of())
        with pytest.raises(ValueError, match=message):
            sampler.sample([PromptRequest("p", 0, prompt, 1)], CONFIG)
