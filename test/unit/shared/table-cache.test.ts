/** The table cache: loads, evictions, dirty slots on their way to the file. */
import test from 'ava';
import {
  createTableCache,
  SLICE_BYTES,
  TABLE_CACHE_MIN_BYTES,
  TableCache,
  type TableSlice,
} from '../../../src/shared/table-cache';
import { Random, seedOf } from '../../helpers/random';

const slice = (offset: number, length = SLICE_BYTES): TableSlice => ({ offset, length, level: 'l2' });

function small(): TableCache {
  return new TableCache(createTableCache(TABLE_CACHE_MIN_BYTES));
}

/** Loads a slice full of one byte. @returns its slot */
function load(cache: TableCache, image: number, offset: number, value: number): number {
  if (!cache.load(image, slice(offset), (target, at, length) => target.fill(value, at, at + length))) return -2;
  return cache.find(image, offset, 0);
}

const first = (cache: TableCache, slot: number) => cache.bytes[slot * SLICE_BYTES];

/** Offsets that share a set with `offset` of `image`, by trying: loading nine of them evicts the first. */
function sameSet(cache: TableCache, image: number, count: number): number[] {
  const probe = small();
  const start = load(probe, image, 0, 1);
  const found = [0];
  for (let offset = SLICE_BYTES; found.length < count; offset += SLICE_BYTES) {
    const slot = load(probe, image, offset, 1);
    if (Math.floor(slot / 8) === Math.floor(start / 8)) found.push(offset);
  }
  return found.slice(0, cache.capacity);
}

test('TableCache.find() gives what was loaded, by image and offset, with and without the hint', (t) => {
  const cache = small();
  t.is(cache.find(1, 0, 0), -1);
  const one = load(cache, 1, 0, 11);
  const two = load(cache, 2, 0, 22);
  t.not(one, two);
  t.is(first(cache, one), 11);
  t.is(first(cache, two), 22);
  t.is(cache.find(1, 0, two), one);
  t.is(cache.find(2, 0, two), two);
  t.is(cache.find(3, 0, one), -1);
  t.is(cache.find(1, 512, one), -1);
  t.is(cache.misses, 2);
  load(cache, 1, 0, 99);
  t.is(first(cache, one), 11, 'a slice that is there is not read again');
});

test('TableCache.load(): a failed read leaves nothing, and the next one succeeds', (t) => {
  const cache = small();
  t.throws(() =>
    cache.load(1, slice(0), () => {
      throw new Error('the host failed');
    }),
  );
  t.is(cache.find(1, 0, 0), -1);
  t.true(load(cache, 1, 0, 5) >= 0);
});

test('TableCache.load() evicts the slice used longest ago of its set, never a dirty one', (t) => {
  const cache = small();
  const offsets = sameSet(cache, 1, 12);
  for (let i = 0; i < 8; i++) load(cache, 1, offsets[i], i);
  t.is(cache.claim(cache.find(1, offsets[0], 0), 1, offsets[0], 0, 8), 1);
  cache.find(1, offsets[1], 0);
  load(cache, 1, offsets[8], 8);
  t.true(cache.find(1, offsets[0], 0) >= 0, 'dirty');
  t.true(cache.find(1, offsets[1], 0) >= 0, 'used just now');
  t.is(cache.find(1, offsets[2], 0), -1, 'used longest ago');
  for (let i = 1; i <= 8; i++) if (i !== 2) t.true(cache.claim(cache.find(1, offsets[i], 0), 1, offsets[i], 0, 8) >= 0);
  t.is(load(cache, 1, offsets[9], 9), -2, 'all are dirty');
  t.is(cache.find(1, offsets[9], 0), -1);
  const spans = cache.takeDirty(1);
  t.is(spans.length, 8);
  t.is(load(cache, 1, offsets[9], 9), -2, 'being written is not written');
  t.is(cache.written(spans), 8);
  t.true(load(cache, 1, offsets[9], 9) >= 0);
});

test('TableCache.claim() refuses a slot that holds another slice by now', (t) => {
  const cache = small();
  const offsets = sameSet(cache, 1, 9);
  const slot = load(cache, 1, offsets[0], 1);
  const version = cache.version(slot);
  t.true(cache.unchanged(slot, version, 1, offsets[0]));
  for (let i = 1; i <= 8; i++) load(cache, 1, offsets[i], i);
  t.is(cache.claim(slot, 1, offsets[0], 0, 8), -1);
  t.false(cache.unchanged(slot, version, 1, offsets[0]));
  load(cache, 1, offsets[0], 1);
  const again = cache.find(1, offsets[0], 0);
  if (again === slot)
    t.false(cache.unchanged(slot, version, 1, offsets[0]), 'the same slice in the same slot, but read again');
  t.is(cache.claim(again, 2, offsets[0], 0, 8), -1, 'another image');
});

test('TableCache.version(): a slot that is being loaded cannot be believed afterwards', (t) => {
  const cache = small();
  const slot = load(cache, 1, 0, 1);
  cache.forget(1);
  let version = 0;
  cache.load(1, slice(0), (target, at, length) => {
    version = cache.version(slot);
    target.fill(2, at, at + length);
  });
  t.is(cache.find(1, 0, 0), slot);
  t.false(cache.unchanged(slot, version, 1, 0));
});

test('TableCache.takeDirty() gives the changed sectors; changes made meanwhile stay for the next time', (t) => {
  const cache = small();
  const slot = load(cache, 1, SLICE_BYTES, 1);
  const bytes = cache.bytes.subarray(slot * SLICE_BYTES, (slot + 1) * SLICE_BYTES);
  t.is(cache.claim(slot, 1, SLICE_BYTES, 512, 8), 1);
  bytes.fill(7, 512, 520);
  t.is(cache.claim(slot, 1, SLICE_BYTES, 3 * 512 + 504, 16), 0);
  bytes.fill(8, 3 * 512 + 504, 3 * 512 + 520);
  const spans = cache.takeDirty(1);
  t.is(spans.length, 1);
  t.is(spans[0].offset, SLICE_BYTES + 512);
  t.is(spans[0].bytes.length, 4 * 512);
  t.deepEqual(spans[0].bytes, bytes.slice(512, 5 * 512));
  t.is(cache.takeDirty(1).length, 0, 'nothing new');
  t.is(cache.claim(slot, 1, SLICE_BYTES, SLICE_BYTES - 8, 8), 0);
  bytes.fill(9, SLICE_BYTES - 8);
  t.not(spans[0].bytes[0], 9, 'a copy');
  t.is(cache.written(spans), 0, 'changed again: it stays dirty');
  const next = cache.takeDirty(1);
  t.deepEqual([next[0].offset, next[0].bytes.length], [2 * SLICE_BYTES - 512, 512]);
  cache.notWritten(next);
  const retry = cache.takeDirty(1);
  t.deepEqual(retry[0].bytes, next[0].bytes);
  t.is(cache.written(retry), 1);
  t.is(cache.takeDirty(1).length, 0);
});

test('TableCache.claim() takes the first and the last sector, and no range outside', (t) => {
  const cache = small();
  const slot = load(cache, 1, 0, 1);
  cache.claim(slot, 1, 0, 0, SLICE_BYTES);
  t.is(cache.takeDirty(1)[0].bytes.length, SLICE_BYTES);
  t.throws(() => cache.claim(slot, 1, 0, SLICE_BYTES - 4, 8));
  const clean = load(cache, 1, SLICE_BYTES, 1);
  t.throws(() => cache.claim(clean, 1, SLICE_BYTES, SLICE_BYTES - 4, 8));
  t.is(cache.claim(clean, 1, SLICE_BYTES, 0, 8), 1, 'the refused claim has changed nothing');
  t.is(cache.takeDirty(1).length, 1);
});

test('TableCache.takeDirty() finds every dirty slot, those of other images left out, and none that was written, forgotten or evicted', (t) => {
  const cache = small();
  const slots = cache.capacity;
  // Most of the cache: slots of both images in every word of the set of dirty ones.
  const offsets = [1, 2].map((image) => {
    const own: number[] = [];
    for (let i = 0; i < slots / 2; i++) {
      const offset = i * SLICE_BYTES;
      const slot = load(cache, image, offset, image);
      if (slot >= 0 && cache.claim(slot, image, offset, 0, 8) === 1) own.push(offset);
    }
    return own;
  });
  t.true(offsets[0].length > slots / 4 && offsets[1].length > slots / 4);
  const taken = cache.takeDirty(1);
  t.deepEqual(taken.map(({ offset }) => offset).sort(), [...offsets[0]].sort());
  t.is(cache.written(taken), taken.length);
  t.deepEqual(cache.takeDirty(1), []);
  t.false(cache.isDirty(1, 0, slots * SLICE_BYTES));
  t.true(cache.forgetSlice(2, offsets[1][0]));
  t.false(cache.isDirty(2, offsets[1][0], offsets[1][0] + 8));
  // The places of image 1 become image 3's, and dirty again.
  const again = offsets[0].filter((offset) => {
    const slot = load(cache, 3, offset, 3);
    return slot >= 0 && cache.claim(slot, 3, offset, 0, 8) === 1;
  });
  t.true(again.length > 0);
  t.is(cache.takeDirty(3).length, again.length);
  t.is(cache.takeDirty(2).length, offsets[1].length - 1);
  t.is(cache.forget(2), offsets[1].length - 1);
  t.false(cache.isDirty(2, 0, slots * SLICE_BYTES));
});

test('TableCache: images keep apart; forget() drops one of them, dirty slots counted', (t) => {
  const cache = small();
  for (let i = 0; i < 60; i++) {
    const slot = load(cache, 1 + (i % 2), i * SLICE_BYTES, i);
    cache.claim(slot, 1 + (i % 2), i * SLICE_BYTES, 0, 8);
  }
  t.false(cache.halfDirty);
  for (let i = 60; i < 80; i++) {
    const slot = load(cache, 1, i * SLICE_BYTES, i);
    if (slot >= 0) cache.claim(slot, 1, i * SLICE_BYTES, 0, 8);
  }
  t.true(cache.halfDirty);
  t.true(cache.takeDirty(2).every(({ offset }) => (offset / SLICE_BYTES) % 2 === 1));
  t.is(cache.forget(2), 30);
  t.false(cache.halfDirty);
  t.is(cache.find(2, SLICE_BYTES, 0), -1);
  t.true(cache.find(1, 0, 0) >= 0);
});

test('TableCache: the first slices of tables spread over the whole cache, at every distance of tables', (t) => {
  for (const distance of [4096, 64 * 1024, 256 * 1024, 2 ** 21, 2 ** 21 + 4096, 2 ** 25, 2 ** 31, 2 ** 33]) {
    const cache = new TableCache(createTableCache(8 * 1024 * 1024));
    const tables = cache.capacity / 2;
    for (let i = 0; i < tables; i++) load(cache, 1, (i + 1) * distance, 1);
    let kept = 0;
    for (let i = 0; i < tables; i++) if (cache.find(1, (i + 1) * distance, 0) >= 0) kept++;
    t.true(kept > tables * 0.9, `${kept} of ${tables} tables, ${distance} bytes apart, stay in a cache twice as large`);
  }
});

test('TableCache against a model: random loads, claims, flushes and failures', (t) => {
  const random = new Random(seedOf(t, 32));
  const cache = small();
  /** What the file holds and what it should hold: a byte per slice. */
  const file = new Map<number, number>();
  const wanted = new Map<number, number>();
  let changed = 0;
  for (let step = 0; step < 30_000; step++) {
    const offset = random.below(400) * SLICE_BYTES;
    const what = random.below(100);
    if (what < 90) {
      let slot = cache.find(1, offset, 0);
      if (slot < 0) slot = load(cache, 1, offset, file.get(offset) ?? 0);
      if (slot < 0) continue;
      if (first(cache, slot) !== (wanted.get(offset) ?? 0))
        return t.fail(`step ${step}: slice at ${offset} lost a change`);
      if (what < 30 && cache.claim(slot, 1, offset, 0, 8) >= 0) {
        const value = 1 + random.below(255);
        cache.bytes[slot * SLICE_BYTES] = value;
        wanted.set(offset, value);
        changed++;
      }
    } else if (what < 95) {
      const spans = cache.takeDirty(1);
      if (random.chance(0.3)) {
        cache.notWritten(spans);
        continue;
      }
      for (const span of spans) file.set(span.offset, span.bytes[0]);
      cache.written(spans);
    }
  }
  const last = cache.takeDirty(1);
  for (const span of last) file.set(span.offset, span.bytes[0]);
  cache.written(last);
  t.deepEqual([...file].sort(), [...wanted].sort());
  t.true(changed > 1000);
  t.false(cache.halfDirty);
});
