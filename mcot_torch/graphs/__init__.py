"""The state graph: data, no learning."""
