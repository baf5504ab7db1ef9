"""The fixed-size decoder: what the plain one says, to the token, while rows end, move and leave."""

import pytest
import torch
from tiny_models import EOS, ScriptedModel, byte_tokenizer, tiny_model
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from alignment_core import graph_decoding
from alignment_core.config import SamplingConfig
from alignment_core.decode_step import decode, new_cache, prefill, unsupported
from alignment_core.graph_decoding import Buffers, GraphDecoder, padded_size, resolve_decoding, round_up
from alignment_core.records import Completion, Problem
from alignment_core.sampling import PromptRequest, build_requests
from alignment_core.transformers_sampler import TransformersSampler

TOKENIZER = byte_tokenizer("r>!")
TEXTS = ["a", "a longer prompt", "mid one", "a", "yet another prompt of its own"]
CONFIG = SamplingConfig(max_tokens=40, stop=tuple("abcdefgh"), batch_size=64, decoding="static")


def requests_of(texts: list[str], group: int = 1) -> list[PromptRequest]:
    problems = [Problem(id=f"p{i}", question="", prompt=text, ground_truth="") for i, text in enumerate(texts)]
    return build_requests(problems, TOKENIZER, group, 7, "test")


def sampled(model: PreTrainedModel, config: SamplingConfig, requests: list[PromptRequest]) -> list[Completion]:
    return TransformersSampler(model, TOKENIZER).sample(requests, config)


def assert_same(ours: list[Completion], theirs: list[Completion]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        for name in ("problem_id", "sample_index", "response_ids", "text", "finish_reason"):
            assert getattr(one, name) == getattr(other, name)
        assert one.sampler_log_probs == pytest.approx(other.sampler_log_probs, abs=1e-4)
        assert one.mean_entropy == pytest.approx(other.mean_entropy, abs=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"min_tokens": 10},
        {"temperature": 0.0},
        {"temperature": 0.7, "top_p": 0.8},
        {"batch_size": 7},
        {"stop": ("xy", "</answer>"), "max_tokens": 17},
        {"max_tokens": 1},
    ],
)
def test_says_what_the_plain_way_says(changes: dict[str, object]):
    config = CONFIG.model_copy(update=changes)
    model = tiny_model(TOKENIZER, vocab_size=300)
    requests = requests_of(TEXTS, group=12)
    ours = sampled(model, config, requests)
    assert_same(ours, sampled(model, config.model_copy(update={"decoding": "plain"}), requests))


def test_batches_shrink_as_rows_end_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch):
    sizes: list[int] = []
    move, moved = Buffers.move, []
    step = GraphDecoder.step
    monkeypatch.setattr(
        GraphDecoder, "step", lambda self, kind, *rest: (sizes.append(kind.size), step(self, kind, *rest))
    )
    monkeypatch.setattr(Buffers, "move", lambda self, *where: (moved.append(len(where[0])), move(self, *where)))
    model = tiny_model(TOKENIZER)
    config = CONFIG.model_copy(update={"stop": tuple("abcdefghijklmnop"), "max_tokens": 60})
    requests = requests_of(TEXTS, group=12)
    ours = sampled(model, config, requests)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 64
    assert len(set(sizes)) >= 4
    assert sum(moved) > 0
    assert len({item.finish_reason for item in ours}) > 1
    assert_same(ours, sampled(model, config.model_copy(update={"decoding": "plain"}), requests))


def test_eos_ends_a_row_and_stays_in_its_ids():
    model = tiny_model(TOKENIZER)
    config = CONFIG.model_copy(update={"stop": (), "max_tokens": 60})
    with torch.no_grad():
        # Untied and raised, so that EOS is likely enough to be drawn.
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
        model.lm_head.bias = torch.nn.Parameter(torch.zeros(len(TOKENIZER)).index_fill(0, torch.tensor([256]), 3.0))
    assert TOKENIZER.convert_tokens_to_ids(EOS) == 256
    requests = requests_of(TEXTS, group=12)
    ours = sampled(model, config, requests)
    ended = [item for item in ours if item.finish_reason == "eos"]
    assert len(ended) > 10
    assert all(item.response_ids.index(256) == len(item.response_ids) - 1 for item in ended)
    assert_same(ours, sampled(model, config.model_copy(update={"decoding": "plain"}), requests))


def small(kind: type, config_kind: type) -> PreTrainedModel:
    shape = config_kind(
        vocab_size=len(TOKENIZER),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=16,
        initializer_range=0.2,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=TOKENIZER.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(shape).eval()


@pytest.mark.parametrize(("kind", "shape"), [(LlamaForCausalLM, LlamaConfig), (Qwen3ForCausalLM, Qwen3Config)])
def test_the_rest_of_the_family(kind: type, shape: type):
    model = small(kind, shape)
    requests = requests_of(TEXTS, group=3)
    assert_same(
        sampled(model, CONFIG, requests), sampled(model, CONFIG.model_copy(update={"decoding": "plain"}), requests)
    )


def test_a_step_gives_the_hidden_states_of_a_whole_forward_pass():
    model = tiny_model(TOKENIZER).double()
    prompts = [[5, 6, 7, 8], [9], [5, 6, 7, 8], [1, 2]]
    cache = new_cache(model, 6, 32)
    with torch.no_grad():
        last = prefill(model, prompts, cache)
        added = torch.tensor([3, 4, 11, 12])
        position = torch.tensor([len(prompt) for prompt in prompts])
        hidden = decode(model, added, position, cache, span=16, flash=False)
        for row, (prompt, new) in enumerate(zip(prompts, added.tolist(), strict=True)):
            whole = model.model(torch.tensor([[*prompt, new]])).last_hidden_state[0]
            assert torch.allclose(last[row], whole[-2], atol=1e-6)
            assert torch.allclose(hidden[row], whole[-1], atol=1e-6)
    assert not cache.keys[0][4:].any()


def test_buffers_stay_from_call_to_call_and_grow_when_they_must(monkeypatch: pytest.MonkeyPatch):
    made: list[tuple[int, ...]] = []
    init = Buffers.__init__
    monkeypatch.setattr(Buffers, "__init__", lambda self, *given: (made.append(given[1:4]), init(self, *given))[1])
    monkeypatch.setattr(graph_decoding, "SPAN", 16)
    sampler = TransformersSampler(tiny_model(TOKENIZER), TOKENIZER)
    short = CONFIG.model_copy(update={"max_tokens": 10})
    first = sampler.sample(requests_of(TEXTS, 3), short)
    sampler.sample(requests_of(TEXTS), short)
    assert_same(sampler.sample(requests_of(TEXTS, 3), short), first)
    assert made == [(16, 48, 10)]
    sampler.sample(requests_of(TEXTS), CONFIG)
    assert made == [(16, 48, 10), (16, 80, 40)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_new_weights_are_followed_in_place(dtype: str):
    model, other = tiny_model(TOKENIZER), tiny_model(TOKENIZER, seed=1)
    sampler = TransformersSampler(model, TOKENIZER, dtype)
    requests = requests_of(TEXTS)
    before = sampler.sample(requests, CONFIG)
    decoder = sampler._decoder
    addresses = [weight.data_ptr() for weight in decoder.model.parameters()]
    model.load_state_dict(other.state_dict())
    sampler.update_weights(model)
    after = sampler.sample(requests, CONFIG)
    assert sampler._decoder is decoder
    assert [weight.data_ptr() for weight in decoder.model.parameters()] == addresses
    assert [item.response_ids for item in after] != [item.response_ids for item in before]
    assert_same(after, TransformersSampler(other, TOKENIZER, dtype).sample(requests, CONFIG))


def test_moved_weights_drop_what_was_recorded():
    model = tiny_model(TOKENIZER)
    sampler = TransformersSampler(model, TOKENIZER)
    sampler.sample(requests_of(TEXTS), CONFIG)
    sampler._decoder._recorded = dict.fromkeys(["stale"])
    sampler.sample(requests_of(TEXTS), CONFIG)
    assert "stale" in sampler._decoder._recorded
    model.model.norm.weight = torch.nn.Parameter(model.model.norm.weight.clone())
    sampler.sample(requests_of(TEXTS), CONFIG)
    assert "stale" not in sampler._decoder._recorded


def test_the_way_is_chosen_by_device_and_model():
    model = tiny_model(TOKENIZER)
    assert resolve_decoding("auto", model) == "plain"
    assert resolve_decoding("static", model) == "static"
    with pytest.raises(ValueError, match="need the model on a CUDA device"):
        resolve_decoding("graph", model)
    scripted = ScriptedModel(TOKENIZER, 2, [], 1)
    assert resolve_decoding("auto", scripted) == "plain"
    with pytest.raises(ValueError, match="static is not possible"):
        resolve_decoding("static", scripted)


def test_models_it_would_get_wrong_are_refused():
    model = tiny_model(TOKENIZER)
    assert unsupported(model) is None
    model.config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4}
    assert "depends on the length" in unsupported(model)
    model = tiny_model(TOKENIZER)
    model.config.layer_types = ["full_attention", "sliding_attention"]
    assert "full attention" in unsupported(model)
    model.config.model_type = "gemma2"
    assert "gemma2" in unsupported(model)


def test_batch_sizes_and_rounding():
    assert [padded_size(rows) for rows in (0, 1, 4, 5, 33, 200, 256, 257, 513)] == [4, 4, 4, 8, 64, 256, 256, 512, 768]
    assert [round_up(value, 16) for value in (1, 16, 17)] == [16, 16, 32]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_graphs_say_what_the_same_steps_say_without_them():
    model = tiny_model(TOKENIZER).cuda()
    requests = requests_of(TEXTS, group=12)
    graph = CONFIG.model_copy(update={"decoding": "graph", "min_tokens": 3})
    sampler = TransformersSampler(model, TOKENIZER)
    for _ in range(2):
        ours = sampler.sample(requests, graph)
        assert_same(ours, sampled(model, graph.model_copy(update={"decoding": "static"}), requests))
