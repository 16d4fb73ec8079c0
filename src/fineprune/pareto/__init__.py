"""The Pareto front of one network: what several compressions keep of its accuracy, by the time that they take."""
