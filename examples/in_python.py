"""From a graph to a student in Python: the four algorithms, one after the other."""

import mcot_torch as mt

graph = mt.build_graph(mt.GraphConfig(n_clusters=6, cluster_size=8, epsilon=0.01))
task = mt.build_task(mt.TaskConfig(), graph)
scales = mt.Scales.of(graph, epsilon_max=0.1)

reasoner = mt.TransformerReasoner(graph.n_states)
mt.pretrain(reasoner, graph)  # Algorithm 1
prm = mt.search(reasoner, scales).model  # Algorithm 2: sees the reasoner's walks only
mt.ppo(reasoner, prm, scales)  # Algorithm 3
student = mt.distill(reasoner, prm, scales).model  # Algorithm 4

ideal = graph.with_epsilon(scales.epsilon_max)  # what PPO should end at
models, truths = {"tuned": reasoner, "student": student}, {"tuned": ideal, "student": ideal}
for name, row in mt.evaluate(models, graph, task, truths).items():  # beside the exact chain, "base"
    print(f"{name:8} {row['hitting_time_exact']:8.1f} {row['unit']}, {row['speedup']:.1f}x, TV {row['row_tv_max']:.3f}")
