"""A tiny OLMo-2 in float64 whose answers, three tokens of three, are all enumerated, with a reward for every token."""

import torch

from replicate.lm.enumeration import all_completions, token_rewards
from replicate.models.fresh import tiny_olmo2
from replicate.rl.batch import Asked
from replicate.rl.policies import StackedPolicy

VOCAB, T = 3, 3
COMPLETIONS = all_completions(VOCAB, T)
PROMPT = torch.tensor([[[2, 0, 1, 1]]])
TOKENS = COMPLETIONS[None, None]  # [lanes, prompts, group, T], the group being all there are


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def rewards(seed=0):
    """r_t of every completion [lanes, prompts, group, T], which does not look ahead."""
    return token_rewards(COMPLETIONS, vocab=VOCAB, generator=seeded(seed))[None, None]


def network(*, gain=12.0, seed=0):
    """Fresh weights, its matrices larger by ``gain`` so that answers are far from equally likely."""
    model = tiny_olmo2(layers=1, hidden=16, heads=2, context=16, vocab=VOCAB, generator=seeded(seed))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(gain if weight.ndim == 2 else 1.0)
    model.set_attn_implementation("eager")
    return model.double().eval()


def stacked(**how):
    return StackedPolicy(network(**how), 1)


def asked():
    return Asked(PROMPT, torch.zeros(1, 1, dtype=torch.long), VOCAB, T, lambda tokens, labels: None)


def log_probs(policy):
    """log pi(o_t | q, o_<t) of all completions [completions, T]: whole sequences, no cache, no shared prompt."""
    whole = torch.cat([PROMPT[0].expand(len(COMPLETIONS), -1), COMPLETIONS], dim=1)[None]
    table = policy.logits(whole, keep=T + 1)[0, :, :-1, :VOCAB].log_softmax(-1)
    return table.gather(-1, COMPLETIONS[..., None])[..., 0]


def exact_values(probs, rewards):
    """V(q, o_<t) [completions, T]: the mean of what is still to come over all completions that begin with o_<t."""
    found = torch.empty_like(rewards)
    for i, completion in enumerate(COMPLETIONS):
        for t in range(T):
            same = (COMPLETIONS[:, :t] == completion[:t]).all(1)
            to_come = rewards[same, t:].sum(1)
            found[i, t] = (probs[same] * to_come).sum() / probs[same].sum()
    return found


def flat_gradient(scalar, policy):
    return torch.cat([g.flatten() for g in torch.autograd.grad(scalar, policy.parameters())])
