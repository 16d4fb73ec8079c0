"""A minimum cut: each of many things on one of two sides, so that the costs of the sides and of what crosses are least.

An edge u -> v is paid where u is on the source's side and v on the sink's: a thing's costs tie it to source and sink. What one makes and
several read pays once, however many readers are on the other side, through a node that stands for all of them. Every term is
submodular, so that the minimum cut is the best choice, not an approximation.
"""

from collections import defaultdict, deque

NEVER = 1 << 60
"""A cost that nobody pays."""
SOURCE, SINK = "source", "sink"

Node = int | str | tuple[str, str]


class Cut:
    """A flow network with integer capacities."""

    def __init__(self) -> None:
        self._capacity: dict[Node, dict[Node, int]] = defaultdict(lambda: defaultdict(int))

    def edge(self, start: Node, end: Node, capacity: int) -> None:
        self._capacity[start][end] += capacity
        self._capacity[end][start] += 0

    def crossing(self, name: str, producer: int, readers: set[int], cost: int, side: str) -> None:
        """Paid once where the producer is not on the side `side` and a reader is; name: of what they have in common."""
        shared = (name, side)
        for reader in readers:
            self._directed(shared, reader, NEVER, side == SINK)
        if readers:
            self._directed(producer, shared, cost, side == SINK)

    def _directed(self, start: Node, end: Node, capacity: int, forward: bool) -> None:
        if forward:
            self.edge(start, end, capacity)
        else:
            self.edge(end, start, capacity)

    def source_side(self) -> set[Node]:
        """The nodes on the source's side of a minimum cut: what a maximum flow (Edmonds-Karp) leaves within reach."""
        while True:
            parents: dict[Node, Node] = {SOURCE: SOURCE}
            queue: deque[Node] = deque([SOURCE])
            while queue and SINK not in parents:
                node = queue.popleft()
                for neighbour, capacity in self._capacity[node].items():
                    if capacity > 0 and neighbour not in parents:
                        parents[neighbour] = node
                        queue.append(neighbour)
            if SINK not in parents:
                return set(parents)
            path: list[tuple[Node, Node]] = []
            node = SINK
            while node != SOURCE:
                path.append((parents[node], node))
                node = parents[node]
            flow = min(self._capacity[start][end] for start, end in path)
            for start, end in path:
                self._capacity[start][end] -= flow
                self._capacity[end][start] += flow
