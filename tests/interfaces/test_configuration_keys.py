"""The names of the settings are an interface: configurations that people keep must be read by later versions."""

from __future__ import annotations

import yaml

KEYS = """
name run_dir seed stages overwrite
graph.family graph.n_clusters graph.cluster_size graph.epsilon graph.epsilon_max graph.jumps graph.cluster
graph.degree graph.n_out graph.d_out graph.out_degree graph.weights graph.entries graph.seed graph.n_discs
graph.n_hard_discs graph.n_rows graph.n_columns graph.room_size graph.formula graph.max_leaves graph.concept
graph.radius graph.path graph.clusters_path graph.threshold
task.start task.target
logic.group logic.actions logic.seed logic.paths
reasoner.kind reasoner.window reasoner.width reasoner.n_layers reasoner.n_heads reasoner.tied
pretrain.steps pretrain.steps_after_cut pretrain.threshold pretrain.data pretrain.transitions
pretrain.path_length pretrain.batch_size pretrain.optimizer pretrain.learning_rate pretrain.beta2
pretrain.compile pretrain.log_every
search.rounds search.walks search.cover_steps search.max_steps search.min_votes search.mode
ppo.form ppo.reward ppo.rounds ppo.epochs ppo.minibatches ppo.transitions ppo.path_length ppo.learning_rate
ppo.clip ppo.kl_coefficient ppo.gamma ppo.gae_lambda ppo.entropy_coefficient ppo.target_kl ppo.sign_step
ppo.log_every
distill.teacher distill.student distill.label_walks distill.transitions distill.path_length distill.steps
distill.learning_rate distill.beta distill.log_every
evaluation.walks evaluation.horizon_factor evaluation.contexts evaluation.figures
trainer.accelerator trainer.devices trainer.strategy trainer.precision trainer.threads trainer.deterministic
trainer.save_every trainer.progress
"""


def dotted(tree: dict, before: str = "") -> list[str]:
    keys: list[str] = []
    for key, value in tree.items():
        keys += dotted(value, f"{before}{key}.") if isinstance(value, dict) else [f"{before}{key}"]
    return keys


def test_every_setting_keeps_its_name(command):
    status, printed, errors = command("train.py", "--print_config")
    assert (status, errors) == (0, "")
    assert dotted(yaml.safe_load(printed)) == KEYS.split()
