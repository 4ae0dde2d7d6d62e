"""The page cache: every page is free, held by a sequence, or kept for whoever comes with the same tokens."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from kvcache.lease import Lease
from kvcache.leaves import Leaves
from kvcache.pages import PAGE, PagePool
from kvcache.store import PageStore
from kvcache.tier import Tier, TierState, page_key, root_key
from kvcache.tree import Node, as_bytes

LEAVING = 5.0  # seconds that are taken to store what is cold, before whatever waits for our end loses its patience
AHEAD = 64  # pages of one prompt that are on their way from the tier at once


@dataclass
class Counts:
    """Since the start."""

    copied: int = 0
    evicted: int = 0


class PageCache:
    """Pages and who has them. Only the engine's thread calls it, and only while no pass runs.

    A page is free, or held by leases (in the tree, shared and written no more, or a lease's own), or kept: in the tree
    and held by nobody. Kept pages make room when others are wanted (see Leaves).
    """

    def __init__(
        self, pages: int, store: PageStore, tier: Tier | None = None, identity: bytes = b"", steep: float = 0.0
    ) -> None:
        """The identity is the model's, its arithmetic's and its pages' layout's; for `steep` see Leaves."""
        self.pool = PagePool(pages)
        self.counts = Counts()
        self._store = store
        self._tier = tier
        self._identity = identity
        self._roots: dict[bytes, Node] = {}
        self._leases: set[Lease] = set()
        self._kept = 0
        self._leaves = Leaves(steep)
        self._by_key: dict[bytes, Node] = {}  # whole pages, where there is a tier
        self._coming: dict[bytes, tuple[bytes, bytes]] = {}  # key: parent's key, tokens
        self._arrived: list[Node] = []  # held until the leases had their chance
        self._cold: deque[Node] = deque()  # to be stored on the tier

    @property
    def available(self) -> int:
        """Pages that can be taken."""
        return self.pool.free + self._kept

    @property
    def kept(self) -> int:
        return self._kept

    @property
    def shared(self) -> int:
        """Pages that several leases hold."""
        return sum(node.holders > 1 for root in self._roots.values() for node in root.below())

    @property
    def unsettled(self) -> bool:
        """Something is to be stored, or on its way, or came and waits for those who asked."""
        return bool(self._cold or self._coming or self._arrived)

    def tier_state(self) -> TierState | None:
        return self._tier.state() if self._tier else None

    def open(self, salt: str) -> Lease:
        name = salt.encode()
        root = self._roots.get(name)
        if root is None:
            root = self._roots[name] = Node(None, name, -1, root_key(self._identity, name))
            self._by_key[root.key] = root
        lease = Lease(root)
        root.holders += 1
        root.writers.append(lease.writer)
        self._leases.add(lease)
        return lease

    def find(self, lease: Lease, tokens: Sequence[int]) -> None:
        """The lease shares every whole page that is there; what a further tier has is asked for, and awaited.

        The last token is never found: it is computed, for the logits that follow it.
        """
        most = (len(tokens) - 1) // PAGE
        while lease.depth < most:
            node = lease.node.children.get(_page_of(tokens, lease.depth))
            if node is None:
                break
            if len(lease.pages) > lease.depth:
                self.pool.give(lease.pages[lease.depth])
                lease.pages[lease.depth] = node.page
            else:
                lease.pages.append(node.page)
            self._descend(lease, node)
            lease.filled = lease.depth * PAGE
        lease.awaits = self._tier is not None and self._ask(lease, tokens, most, self._tier)

    def find_part(self, lease: Lease, tokens: Sequence[int]) -> None:
        """The first tokens of its next page are copied from a page that begins with more of them than it has."""
        start = lease.depth * PAGE
        wanted = as_bytes(tokens[start : min(start + PAGE, len(tokens) - 1)])
        if len(wanted) <= len(lease.writer.tail) or self.missing(lease, start + 1) > self.available:
            return
        self.grow(lease, start + 1)  # before the look: a page that has to go for it is found no more
        page, known = lease.node.nearest(wanted)
        if known <= lease.filled - start:
            return
        self._store.copy(page, lease.pages[lease.depth])
        self.counts.copied += 1
        self.fill(lease, tokens, start + known)

    def missing(self, lease: Lease, tokens: int) -> int:
        """Pages it lacks for so many tokens."""
        return max(0, -(-tokens // PAGE) - len(lease.pages))

    def grow(self, lease: Lease, tokens: int) -> None:
        """Its pages have room for so many tokens. The caller has seen that enough are available."""
        for _ in range(self.missing(lease, tokens)):
            lease.pages.append(self._take())

    def fill(self, lease: Lease, tokens: Sequence[int], filled: int) -> None:
        """The keys and values of the first `filled` tokens are in its pages; those that became whole are shared."""
        assert lease.filled <= filled <= lease.room(), "a lease fills its own pages"
        while filled >= (lease.depth + 1) * PAGE:
            self._publish(lease, _page_of(tokens, lease.depth))
        lease.filled = filled
        lease.writer.tail = as_bytes(tokens[lease.depth * PAGE : filled])
        lease.writer.page = lease.pages[lease.depth] if lease.writer.tail else -1

    def close(self, lease: Lease) -> None:
        """What it computed is kept, the rest of its pages are free."""
        assert lease.open, "a lease is closed twice"
        lease.open = False
        self._leaves.tick()
        self._leases.remove(lease)
        lease.node.writers.remove(lease.writer)
        own = lease.own
        if lease.writer.tail and not lease.node.covers(lease.writer.tail):
            self._keep_end(lease.node, lease.writer.tail, own.pop(0))
        for page in own:
            self.pool.give(page)
        if self._tier is not None and lease.depth:
            self._tier.use(lease.node.key)
        self._release(lease.node)
        self._leaves.shrink(self._kept)

    def settle(self, wait: float, most: int) -> None:
        """Before leases look: pages that came from the tier are in the tree; some cold ones, at `most`, go there."""
        if self._tier is None:
            return
        for node in self._arrived:
            self._release(node)
        self._arrived.clear()
        for fetched in self._tier.fetched(wait if self._coming else 0):
            self._accept(*self._coming.pop(fetched.key), fetched.key, fetched.content)
        for _ in range(min(most, len(self._cold))):
            if not self._store_cold(self._cold[0], self._tier) and self._tier.state().off is None:
                return  # it has enough to write
            self._cold.popleft()

    def shut(self) -> None:
        """Cold pages are on the tier, as far as it takes them in the time there is, and its threads are gone."""
        if self._tier is not None:
            until = time.monotonic() + LEAVING
            self.settle(0, len(self._cold))
            while self._cold and self._tier.room(until - time.monotonic()):
                self.settle(0, len(self._cold))
            self._tier.close()

    def check(self) -> None:
        """The law of the class holds."""
        nodes = [node for root in self._roots.values() for node in root.below()]
        self.pool.check([node.page for node in nodes] + [page for lease in self._leases for page in lease.own])
        held: dict[int, int] = {}
        for node in [lease.node for lease in self._leases] + self._arrived:
            for above in node.path():
                held[id(above)] = held.get(id(above), 0) + 1
        for node in (*nodes, *self._roots.values()):
            assert node.holders == held.pop(id(node), 0), "a node's holders are not those who hold it"
        assert not held, "a lease holds a node that is not in the tree"
        assert self._kept == sum(node.holders == 0 for node in nodes), "the kept pages are miscounted"
        for lease in self._leases:
            path = [node.page for node in lease.node.path()][-2::-1]
            assert lease.pages[: lease.depth] == path, "a lease's pages are not those of its nodes"
            assert lease.depth * PAGE <= lease.filled < (lease.depth + 1) * PAGE
            assert lease.writer in lease.node.writers
        assert all(root.holders or not root.is_leaf for root in self._roots.values()), "a root without a purpose"

    def _descend(self, lease: Lease, node: Node) -> None:
        lease.node.writers.remove(lease.writer)
        lease.writer.tail = b""
        node.writers.append(lease.writer)
        self._kept -= node.holders == 0
        node.holders += 1
        lease.node = node
        lease.depth += 1

    def _publish(self, lease: Lease, tokens: bytes) -> None:
        """Its first own page is the tree's, or gives way to the one that is there: equal tokens, equal bits."""
        page, above = lease.pages[lease.depth], lease.node
        node = above.children.get(tokens)
        if node is None:
            key = page_key(above.key, tokens) if self._tier else b""
            node = self._attach(above, tokens, page, key)
        else:
            self.pool.give(page)
            lease.pages[lease.depth] = node.page
        self._descend(lease, node)

    def _keep_end(self, above: Node, tokens: bytes, page: int) -> None:
        node = self._attach(above, tokens, page, b"")
        self._leaves.value(node)

    def _attach(self, above: Node, tokens: bytes, page: int, key: bytes) -> Node:
        """A node that nobody holds yet."""
        covered = above.covered(tokens)
        node = Node(above, tokens, page, key)
        above.attach(node)  # first: a root that has nothing is forgotten
        for end in covered:
            self._remove(end)
        self._kept += 1
        if key:
            self._by_key[key] = node
        return node

    def _hold(self, node: Node) -> None:
        for above in node.path():
            self._kept -= above.holders == 0 and not above.is_root
            above.holders += 1

    def _release(self, node: Node) -> None:
        cold: list[Node] = []
        for above in node.path():
            above.holders -= 1
            if above.holders > 0:
                continue
            if above.is_root:
                self._forget_root(above)
                continue
            self._kept += 1
            self._leaves.value(above)
            if self._tier is not None and not above.stored:
                cold.append(above)
        self._cold.extend(reversed(cold))  # a page is of use only with all those before it

    def _take(self) -> int:
        while not self.pool.free:
            self._evict()
        return self.pool.take()

    def _evict(self) -> None:
        node = self._leaves.least()
        if self._tier is not None and node.whole:
            self._store_cold(node, self._tier)
        self.counts.evicted += 1
        self._remove(node)

    def _remove(self, node: Node) -> None:
        assert node.holders == 0, "a held page is taken away"
        assert node.parent is not None, "a root is taken away"
        node.parent.detach(node)
        self._by_key.pop(node.key, None)
        self.pool.give(node.page)
        node.page = -1
        self._kept -= 1
        if node.parent.is_root:
            self._forget_root(node.parent)
        else:
            self._leaves.add(node.parent)

    def _forget_root(self, root: Node) -> None:
        """Roots are as many as there are salts in use."""
        if root.is_leaf and root.holders == 0:
            del self._roots[root.tokens]
            self._by_key.pop(root.key, None)

    def _ask(self, lease: Lease, tokens: Sequence[int], most: int, tier: Tier) -> bool:
        """The next pages that the tier has are on their way; whether the very next is."""
        above, coming = lease.node.key, False
        for depth in range(lease.depth, min(most, lease.depth + AHEAD)):
            page = _page_of(tokens, depth)
            key = page_key(above, page)
            if key not in self._coming:
                if not tier.holds(key) or self.available <= len(self._coming):
                    break
                tier.fetch(key, above, page)
                self._coming[key] = (above, page)
            coming = True
            above = key
        return coming

    def _accept(self, above: bytes, tokens: bytes, key: bytes, content: bytes | None) -> None:
        """A page that came back is in the tree, if there is still a place for it."""
        if content is None or not self.available:
            return
        page = self._take()  # first: what goes for it may be the node above
        parent = self._by_key.get(above)
        if parent is None or tokens in parent.children:
            self.pool.give(page)
            return
        self._store.write(page, content)
        node = self._attach(parent, tokens, page, key)
        node.stored = True
        self._hold(node)
        self._arrived.append(node)

    def _store_cold(self, node: Node, tier: Tier) -> bool:
        """Whether the tier has the page, or will; there is nothing to store where the page is gone."""
        if node.page < 0:
            return True
        assert node.parent is not None, "a root has no page"
        node.stored = tier.holds(node.key) or tier.store(
            node.key, node.parent.key, node.tokens, self._store.read(node.page)
        )
        return node.stored


def _page_of(tokens: Sequence[int], depth: int) -> bytes:
    return as_bytes(tokens[depth * PAGE : (depth + 1) * PAGE])
