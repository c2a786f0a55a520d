"""mutants that no test can tell from the original, each with the reason"""

SHAPES = "shapes are compared as a set, and the message sorts them"
PRODUCT = "a product knows no order of its factors"
ROWS = "of a tensor [B, T] the last dimension is the first but one"
GAP = "(chosen - its reference) - (rejected - its) is (chosen - rejected) - (reference of one - of the other)"
SQUARE = "the square of a difference knows no order"
ALIKE = "both sides get the same number where neither has a candidate, so their difference stays 0"

EQUIVALENT: dict[str, str] = {
    "melior.masking.sum_decisions: -1 → 1": ROWS,
    "melior.masking.mean_decisions: -1 → 1": ROWS,
    "melior.losses.value.value_loss: _same_shape(values, returns) → _same_shape(returns, values)": SHAPES,
    "melior.losses.value.clipped_value_loss: "
    "_same_shape(values, returns, old_values) → _same_shape(returns, values, old_values)": SHAPES,
    "melior.losses.value.clipped_value_loss: "
    "_same_shape(values, returns, old_values) → _same_shape(values, old_values, returns)": SHAPES,
    "melior.losses.value.clipped_value_loss: value_loss(values, returns) → value_loss(returns, values)": SQUARE,
    "melior.losses.value.clipped_value_loss: value_loss(near, returns) → value_loss(returns, near)": SQUARE,
    "melior.losses.policy_gradient.policy_gradient_loss: "
    "_same_shape(log_probs, advantages) → _same_shape(advantages, log_probs)": SHAPES,
    "melior.losses.policy_gradient.truncated_importance_weights: "
    "_same_shape(log_probs, behavior_log_probs) → _same_shape(behavior_log_probs, log_probs)": SHAPES,
    "melior.losses.policy_gradient.bounded_importance_weights: "
    "_same_shape(log_probs, behavior_log_probs) → _same_shape(behavior_log_probs, log_probs)": SHAPES,
    "melior.losses.policy_gradient.clipped_surrogate_loss: "
    "_same_shape(log_probs, old_log_probs, advantages) → _same_shape(old_log_probs, log_probs, advantages)": SHAPES,
    "melior.losses.policy_gradient.clipped_surrogate_loss: "
    "_same_shape(log_probs, old_log_probs, advantages) → _same_shape(log_probs, advantages, old_log_probs)": SHAPES,
    "melior.losses.policy_gradient.sequence_surrogate_loss: "
    "_same_shape(log_probs, old_log_probs, mask) → _same_shape(old_log_probs, log_probs, mask)": SHAPES,
    "melior.losses.policy_gradient.sequence_surrogate_loss: "
    "_same_shape(log_probs, old_log_probs, mask) → _same_shape(log_probs, mask, old_log_probs)": SHAPES,
    "melior.losses.policy_gradient.cispo_loss: "
    "_same_shape(log_probs, old_log_probs, advantages) → _same_shape(old_log_probs, log_probs, advantages)": SHAPES,
    "melior.losses.policy_gradient.cispo_loss: "
    "_same_shape(log_probs, old_log_probs, advantages) → _same_shape(log_probs, advantages, old_log_probs)": SHAPES,
    "melior.losses.policy_gradient.kl_penalty: "
    "_same_shape(log_probs, ref_log_probs) → _same_shape(ref_log_probs, log_probs)": SHAPES,
    "melior.losses.policy_gradient.kl_penalty: -1 → 1": ROWS,
    "melior.losses.policy_gradient.kl_penalty: -1 → 1 #2": ROWS,
    "melior.losses.policy_gradient.kl_penalty: -1 → 1 #3": ROWS,
    "melior.losses.policy_gradient.cispo_loss: 1.0 → 2.0": "a ratio is above 0, so a bound of -1 binds no more than 0",
    "melior.losses.policy_gradient.truncated_importance_loss: "
    "policy_gradient_loss(log_probs, weights * advantages) → policy_gradient_loss(weights * advantages, log_probs)": (
        PRODUCT
    ),
    "melior.losses.policy_gradient.cispo_loss: "
    "policy_gradient_loss(log_probs, weights * advantages) → policy_gradient_loss(weights * advantages, log_probs)": (
        PRODUCT
    ),
    "melior.losses.preference.dpo_loss: _reward_gap(chosen, rejected, ref_chosen, ref_rejected, beta) → "
    "_reward_gap(chosen, ref_chosen, rejected, ref_rejected, beta)": GAP,
    "melior.losses.preference.ipo_loss: _reward_gap(chosen, rejected, ref_chosen, ref_rejected, beta) → "
    "_reward_gap(chosen, ref_chosen, rejected, ref_rejected, beta)": GAP,
    "melior.losses.preference.robust_dpo_loss: "
    "dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=beta, probability=true, margin=margin) → "
    "dpo_loss(chosen, ref_chosen, rejected, ref_rejected, beta=beta, probability=true, margin=margin)": GAP,
    "melior.losses.distillation.candidate_divergence: 0.0 → 1.0 #2": ALIKE,
    "melior.losses.distillation.candidate_divergence: 0.0 → 1.0 #3": ALIKE,
    "melior.losses.distillation.candidate_divergence: 0.0 → 1.0 #4": ALIKE,
}
