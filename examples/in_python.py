"""From a graph to a student in Python: the four algorithms, one after the other."""

import mcot_torch as mt

graph = mt.build_graph(mt.GraphConfig(n_clusters=6, cluster_size=8, epsilon=0.01))
task = mt.build_task(mt.TaskConfig(), graph)
scales = mt.Scales.of(graph, epsilon_max=0.1)

reasoner = mt.TransformerReasoner(graph.n_states)
mt.pretrain(reasoner, graph)  # Algorithm 1
found = mt.search(reasoner, scales)  # Algorithm 2: sees the reasoner's walks only
prm = mt.PRM.from_search(graph.n_states, found.edges)
mt.ppo(reasoner, prm, scales)  # Algorithm 3
student, _ = mt.distill(reasoner, prm, scales)  # Algorithm 4

print("base    ", mt.hitting_time(graph.kernel(), task.start, task.target), "steps")
print("tuned   ", mt.hitting_time(reasoner.kernel().numpy(), task.start, task.target), "steps")
start, target = student.labels[task.start.argmax()], student.labels[task.target]
print("student ", mt.hitting_time(student.kernel().numpy(), int(start), target.numpy()), "hops")
