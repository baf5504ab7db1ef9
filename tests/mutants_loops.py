"""Mutants of the rooms around the losses: scores, batches, updates, loops, rollouts, seeds (see `mutants`)."""

from mutants import Mutant, of_room

PITFALLS, VARIANTS = "test_pitfalls.py", "test_grpo_variants.py"
DENOMINATOR = (f"{PITFALLS}::test_one_denominator_for_the_optimizer_batch",)
PARTIAL = (f"{PITFALLS}::test_the_last_partial_window_has_its_own_denominator",)
TEMPERATURE = (f"{PITFALLS}::test_temperature_is_in_every_log_prob",)
DETACHED = (f"{PITFALLS}::test_on_policy_old_log_probs_are_the_new_ones_detached",)
CLIPPED = (f"{PITFALLS}::test_clip_fraction_counts_loss_tokens_by_side",)
SEEDS = (f"{PITFALLS}::test_seeds_are_of_run_step_problem_and_sample",)
KL = (f"{VARIANTS}::test_kl_to_the_start_policy_is_in_the_gradient",)
IMPORTANCE = (f"{VARIANTS}::test_importance_weights_multiply_the_loss_of_each_token",)
GROUPS = (f"{VARIANTS}::test_dynamic_sampling_replaces_groups_of_equal_reward",)
ENOUGH = (f"{VARIANTS}::test_dynamic_sampling_ends_when_there_are_enough_and_when_the_rounds_do",)
STEPS = ("test_step_metrics.py",)

LOOP_MUTANTS: list[Mutant] = [
    *of_room(
        "logprobs",
        ("test_logprobs.py", "test_chunked_head.py"),
        ("temperature forgotten", "if self.settings.temperature != 1:", "if False:"),
        ("temperature multiplied", "logits /= self.settings.temperature", "logits *= self.settings.temperature"),
        ("gradient without the temperature", "gradient[:, None] / -settings.temperature", "-gradient[:, None]"),
        (
            "padded ids in the softmax",
            "limit = len(weight) if vocab_limit is None else min(vocab_limit, len(weight))",
            "limit = len(weight)",
        ),
        ("softmax in the narrow type", "return torch.promote_types(dtype, torch.float32)", "return dtype"),
        (
            "entropy negative",
            "entropy[part] = -torch.linalg.vecdot(p, log_p)",
            "entropy[part] = torch.linalg.vecdot(p, log_p)",
        ),
        ("head without its gradient", "target.addmm_(narrow.T, states)", "target.add_(0 * (narrow.T @ states))"),
        ("body without its gradient", "self.hidden[rows] = (narrow @ weight) * factor", "self.hidden[rows] = 0"),
        (
            "a foreseen gradient never checked",
            "if gradient is None or not torch.equal(grad_scores, expected):",
            "if gradient is None:",
        ),
    ),
    *of_room(
        "logprobs",
        (f"{PITFALLS}::test_shift_log_prob_of_a_token_is_from_the_logits_before_it",),
        (
            "states that follow the token",
            "hidden[0].index_select(0, row.predictors)",
            "hidden[0].roll(-1, 0).index_select(0, row.predictors)",
        ),
    ),
    *of_room(
        "batching",
        (f"{PITFALLS}::test_masks_come_from_lengths_where_eos_is_the_padding",),
        (
            "mask not shifted",
            "is_response[:, 1:].contiguous(), pack(sequences)",
            "is_response[:, :-1].contiguous(), pack(sequences)",
        ),
        (
            "mask by the padding id",
            "is_response[row, start : sequence.length] = True",
            "is_response[row, start : sequence.length] = ids[row, start : sequence.length] != pad_id",
        ),
        (
            "prompt in the loss",
            "is_response[row, start : sequence.length] = True",
            "is_response[row, : sequence.length] = True",
        ),
        ("padding in the loss", "is_response[row, start : sequence.length] = True", "is_response[row, start:] = True"),
    ),
    *of_room(
        "batching",
        (f"{PITFALLS}::test_shift_log_prob_of_a_token_is_from_the_logits_before_it",),
        (
            "positions run on over sequences",
            "positions.extend(range(len(prompt), len(prompt) + len(said)))",
            "positions.extend(said_row)",
        ),
        (
            "first response token predicted from elsewhere",
            "predictors.append(prompt_row[-1])",
            "predictors.append(prompt_row[0])",
        ),
    ),
    *of_room(
        "optimization",
        ("test_sft.py",),
        (
            "norm after clipping",
            "        rate = learning_rate_at(config, update, total)\n",
            "        rate = learning_rate_at(config, update, total)\n        norm = min(norm, config.max_grad_norm)\n",
        ),
        ("narrow weights accepted", "if narrow:", "if False:"),
        (
            "decay of norms",
            'if weight.dim() < 2], "weight_decay": 0.0}',
            'if weight.dim() < 2], "weight_decay": config.weight_decay}',
        ),
        (
            "warm-up from zero",
            "config.learning_rate * (step + 1) / config.warmup_steps",
            "config.learning_rate * step / config.warmup_steps",
        ),
        ("update with a gradient that is not finite", "if math.isfinite(value):", "if True:"),
    ),
    *of_room(
        "optimization",
        ("test_policy_gradient.py::test_off_policy_schedule_counts_every_update",),
        (
            "rate of the next step",
            "rate = learning_rate_at(config, update, total)",
            "rate = learning_rate_at(config, update + 1, total)",
        ),
    ),
    *of_room(
        "optimization",
        ("test_engine.py::test_a_gradient_that_is_not_finite_stops_the_run_keeps_its_batch_and_the_checkpoint",),
        (
            "batch of a broken gradient not kept",
            'guard.finite("gradient norm", float(nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)))',
            "float(nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm))",
        ),
        ("no batch in the record", "self.run.set_aside(BROKEN_BATCH, self.step, rows)", "''"),
    ),
    *of_room(
        "optimization",
        PARTIAL,
        ("gradients kept for the next step", "optimizer.zero_grad(set_to_none=True)", "pass"),
    ),
    *of_room(
        "sft",
        PARTIAL,
        (
            "denominator in sequences",
            '"token_mean")\n        loss = torch.zeros',
            '"masked_mean")\n        loss = torch.zeros',
        ),
    ),
    *of_room(
        "epochs",
        ("test_sft.py", "test_dpo.py"),
        ("one order for every epoch", 'derive_seed(seed, "epoch", epoch)', 'derive_seed(seed, "epoch")'),
        ("another batch than the step's", "config.batch_size, step, seed)", "config.batch_size, 0, seed)"),
        ("a broken loss goes on", 'guard.finite("loss", metrics["train/loss"])', "pass"),
        ("no point at the end", "return step == total or step % every == 0", "return step % every == 0"),
        ("resumed from the start", "for step in range(done, total):", "for step in range(total):"),
        ("rate of the first step", "config.optimizer, step, total, guard)", "config.optimizer, 0, total, guard)"),
    ),
    *of_room(
        "batching",
        ("test_packing.py",),
        ("prompts counted for every response", "sum(map(len, own - held)) > room", "sum(map(len, own)) > room"),
        ("prompts not counted", "room -= responses + sum(map(len, own - held))", "room -= responses"),
        ("prompts held for ever", "room, held = max_tokens, set()", "room = max_tokens"),
        ("padded size of one of a pair", "together * max(", "max("),
    ),
    *of_room(
        "decoding",
        ("test_decoding.py", "test_sampling.py"),
        ("ids of weight 0 drawn", "positive & (sums > thresholds[:, None])", "sums >= thresholds[:, None]"),
        (
            "past the last id of weight",
            "torch.minimum(first, last)[:, None]",
            "first.clamp(max=len(places) - 1)[:, None]",
        ),
        ("the first id of a block", "offset, _ = _draw(own, inside)", "offset, _ = _draw(own, 0 * inside)"),
        (
            "sums in float32",
            "_draw(torch.cat([blocks, rest], 1).double(), draws)",
            "_draw(torch.cat([blocks, rest], 1), draws)",
        ),
        ("the draw anew within its block", "_draw(own, inside)", "_draw(own, draws)"),
        ("ids after the last whole block", "torch.cat([blocks, rest], 1)", "torch.cat([blocks, 0 * rest], 1)"),
        ("nucleus one id larger", "sums - ordered >= top_p", "sums - 2 * ordered >= top_p"),
    ),
    *of_room(
        "transcripts",
        ("test_decoding.py",),
        ("what was no number is handed out", "if not np.isfinite(all_log_probs[row, :length]).all():", "if False:"),
    ),
    *of_room(
        "models",
        (f"{VARIANTS}::test_the_reference_is_held_in_the_compute_type_and_scores_as_the_policy_does",),
        ("reference in float32", 'torch.bfloat16 if compute_dtype == "bfloat16" else None', "None"),
        (
            "embeddings rounded in the reference",
            "isinstance(module, nn.Linear)} - looked_up",
            "isinstance(module, nn.Linear)}",
        ),
        ("reference with gradients", "copy=True), requires_grad=False", "copy=True), requires_grad=True"),
        ("reference shares its weights", "copy=True)", "copy=False)"),
    ),
    *of_room(
        "processes",
        DENOMINATOR,
        (
            "every micro-batch but the first",
            "return range(process_rank(), count, process_count())",
            "return range(min(1, count - 1), count)",
        ),
    ),
    *of_room(
        "policy_gradient",
        TEMPERATURE,
        (
            "trained at temperature 1",
            "Engine(model, tokenizer, config, compute_dtype, sampling.temperature)",
            "Engine(model, tokenizer, config, compute_dtype)",
        ),
    ),
    *of_room(
        "policy_gradient",
        DETACHED,
        (
            "old log-probs with their graph",
            "old = scores.log_probs.detach()\n            statistics",
            "old = scores.log_probs\n            statistics",
        ),
    ),
    *of_room(
        "policy_gradient",
        KL,
        (
            "denominator of a part of the batch",
            "[len(rollout.completions[row].response_ids) for row in rows]",
            "[len(rollout.completions[row].response_ids) for row in rows[1:]]",
        ),
        ("KL without its coefficient", "per_token + config.kl_coefficient * divergence", "per_token + divergence"),
        (
            "the reference is the policy itself",
            "self._score_under(self._reference, rollout)",
            "self._score_under(self._model, rollout)",
        ),
    ),
    *of_room(
        "policy_gradient",
        (f"{VARIANTS}::test_with_a_kl_penalty_groups_without_advantage_move_the_policy_too",),
        (
            "KL where there is an advantage only",
            "rollout.weights[row].item() != 0 or self._reference is not None",
            "rollout.weights[row].item() != 0",
        ),
    ),
    *of_room(
        "policy_gradient",
        IMPORTANCE,
        ("importance weights not applied", "per_token = per_token * trust", "per_token = per_token * 1"),
    ),
    *of_room(
        "policy_gradient",
        CLIPPED,
        ("statistics added once per epoch", "1 / self._config.epochs_per_rollout_batch", "1.0"),
        (
            "old policy renewed at every update",
            "old = _spread([scored.old_log_probs[row] for row in rows], mask)",
            "old = scores.log_probs.detach()",
        ),
    ),
    *of_room(
        "policy_gradient",
        ("test_policy_gradient.py",),
        (
            "another constant than the one given",
            "self._config.normalize_constant or float(self._sampling.max_tokens)",
            "float(self._sampling.max_tokens)",
        ),
    ),
    *of_room(
        "rollouts",
        (f"{PITFALLS}::test_grouping_is_by_index_where_prompts_are_equal",),
        (
            "problems repeated crosswise",
            "[problem for problem in drawn for _ in range(size)]",
            "[problem for _ in range(size) for problem in drawn]",
        ),
    ),
    *of_room(
        "rollouts",
        ENOUGH,
        ("a round more than needed", ">= wanted:\n            break", "> wanted:\n            break"),
    ),
    *of_room(
        "rollouts",
        GROUPS,
        (
            "the first groups, whatever they teach",
            "groups = informative_first(graded, wanted)",
            "groups = list(range(wanted))",
        ),
    ),
    *of_room(
        "rollouts",
        (f"{VARIANTS}::test_a_group_that_differs_in_length_alone_is_replaced",),
        (
            "groups that differ in length alone count",
            "[verdict.reward for one in rounds for verdict in one.grades]",
            "[v.reward - len(c.response_ids) / 9 for r in rounds for v, c in zip(r.grades, r.completions)]",
        ),
    ),
    *of_room(
        "rollouts",
        ("test_policy_gradient.py",),
        ("the same seeds every step", '(seed, "rollout", step)', '(seed, "rollout")'),
    ),
    *of_room(
        "step_metrics",
        STEPS,
        (
            "largest ratio over the padding",
            "torch.where(mask, values.detach(), -math.inf).amax()",
            "values.detach().amax()",
        ),
        ("gap without its magnitude", 'self.add("sampler_gap", gap.abs(), mask)', 'self.add("sampler_gap", gap, mask)'),
    ),
    *of_room(
        "sampling",
        SEEDS,
        ("seeds without the problem", "derive_seed(*seed_parts, problem.id, index)", "derive_seed(*seed_parts, index)"),
        (
            "seeds without the sample",
            "derive_seed(*seed_parts, problem.id, index)",
            "derive_seed(*seed_parts, problem.id)",
        ),
    ),
    *of_room(
        "models",
        (f"{PITFALLS}::test_dropout_is_off_in_every_loop",),
        ("attention dropout left on", 'for name in ("attention_dropout", "dropout"):', 'for name in ("dropout",):'),
    ),
    *of_room(
        "models",
        (f"{PITFALLS}::test_padded_vocabulary_ids_are_neither_sampled_nor_given_probability",),
        ("padded ids known to the trainer", "return len(tokenizer)", "return 2 * len(tokenizer)"),
    ),
    *of_room(
        "time_budget",
        ("test_time_budget.py",),
        ("the longest step forgotten", "max(self._longest, step_seconds)", "step_seconds"),
        ("the slowest rollout never forgotten", "deque([self._longest], RECENT)", "deque([self._longest])"),
        ("no room for starting", "(self._ahead.start_seconds + ", "("),
        (
            "no room for the last validation",
            "self._ahead.responses + self._config.validation_problems",
            "self._ahead.responses",
        ),
        ("no margin", "+ MARGIN * (", "+ ("),
        ("a resumed run knows no step", "run.seconds() / steps_done if steps_done else 0.0", "0.0"),
    ),
]
