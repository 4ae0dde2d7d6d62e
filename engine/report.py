"""How the engine stands between two steps, in the words of its messages."""

from engine.messages import CacheState, DiskState, Report, RequestState, State
from engine.scheduler import Scheduler
from engine.sequence import Sequence
from kvcache.cache import PageCache
from kvcache.pages import PAGE


def report_of(scheduler: Scheduler, cache: PageCache, looked_up_and_found: tuple[int, int], now: float) -> Report:
    sequences = [*scheduler.running, *scheduler.waiting]
    return Report(tuple(_request(s, now) for s in sequences), _cache(cache, looked_up_and_found, scheduler.preempted))


def _request(s: Sequence, now: float) -> RequestState:
    return RequestState(
        id=s.id,
        state=_state(s),
        client=s.asker.client,
        tier=s.asker.tier,
        prompt=s.prompt,
        computed=s.computed,
        cached=s.cached,
        answered=len(s.tokens) - s.prompt,
        pages=len(s.lease.pages) if s.lease else 0,
        seconds=now - s.came,
    )


def _state(s: Sequence) -> State:
    if s.lease is None:
        return "queued"
    if s.lease.awaits:
        return "restoring"
    return "decode" if s.answered is not None and s.todo == 1 else "prefill"


def _cache(cache: PageCache, looked_up_and_found: tuple[int, int], preempted: int) -> CacheState:
    pool = cache.pool
    looked_up, found = looked_up_and_found
    return CacheState(
        page_size=PAGE,
        pages=pool.pages,
        free=pool.free,
        held=pool.pages - pool.free - cache.kept,
        cached=cache.kept,
        shared=cache.shared,
        looked_up=looked_up,
        found=found,
        copied=cache.counts.copied,
        evicted=cache.counts.evicted,
        preempted=preempted,
        disk=_disk(cache),
    )


def _disk(cache: PageCache) -> DiskState | None:
    tier = cache.tier_state()
    if tier is None:
        return None
    return DiskState(tier.pages, tier.bytes, tier.budget, tier.stored, tier.restored, tier.refused, tier.off)
