/**
 * Two threads in one thread: at a chosen host operation of the first, the second does something to the same image. Each
 * test is one interleaving of which the engine promises the outcome.
 */
import test from 'ava';
import type { ImageNode } from '../../src/block/image-node';
import { maintain } from '../../src/block/open';
import { readQedHeader } from '../../src/formats/qed/header';
import { NEED_CHECK_SET } from '../../src/shared/image-state';
import type { MemoryStorage } from '../../src/storage/memory';
import { KIB, MIB } from '../../src/units';
import { HookedStorage } from '../helpers/hooked-storage';
import { checkStorage, createInMemory, type OpenedChain, openChainOf } from '../helpers/images';
import { patternBytes } from '../helpers/random';

const CLUSTER = 4 * KIB;
const SIZE = 3 * MIB + 512;
const LATER = 3_600_000;

interface Two {
  storage: MemoryStorage;
  chain: OpenedChain;
  /** Thread 0, with hooks at its host operations. */
  one: ImageNode;
  hooks: HookedStorage;
  /** Thread 1. */
  two: ImageNode;
}

function twoThreads(options: { size?: number; backing?: boolean } = {}): Two {
  const size = options.size ?? SIZE;
  const backing = options.backing === true ? { name: 'base', format: 'raw' } : undefined;
  const storage = createInMemory({ format: 'qed', clusterSize: CLUSTER, tableSize: 1, size, backing }, 8 * MIB);
  const storages = [storage];
  if (backing !== undefined) {
    const base = createInMemory({ format: 'raw', size: 4 * MIB }, 4 * MIB);
    base.write(0, patternBytes(0, 4 * MIB, 77), 0, 4 * MIB, 'data-write');
    storages.push(base);
  }
  let hooks: HookedStorage | undefined;
  const chain = openChainOf(storages, {
    wrap: (below) => {
      hooks = new HookedStorage(below);
      return hooks;
    },
  });
  if (hooks === undefined) throw new Error('nothing was wrapped');
  return { storage, chain, one: chain.node, hooks, two: chain.attach(1, (below) => below) };
}

function read(node: ImageNode, offset: number, length: number): Uint8Array {
  const bytes = new Uint8Array(length).fill(255);
  node.read(offset, bytes, 0, length);
  return bytes;
}

function write(node: ImageNode, offset: number, length: number, tag: number): Uint8Array {
  const bytes = patternBytes(offset, length, tag);
  node.write(offset, bytes, 0, length);
  return bytes;
}

test('maintain() flushes in time what was published into a table that a flush was writing', (t) => {
  const { storage, one, two, hooks, chain } = twoThreads();
  write(one, 0, CLUSTER, 1);
  write(one, CLUSTER, CLUSTER, 2);
  hooks.at('l2-update', 'after', () => two.writeZeroes(0, CLUSTER));
  one.flush();
  t.is(hooks.waiting, 0);
  t.is(one.layer.state.dirtySlots, 1, 'the table changed again');
  maintain(one, Date.now() + LATER);
  t.is(one.layer.state.dirtySlots, 0, 'the timed flush wrote it');
  maintain(one, Date.now() + LATER);
  t.false(readQedHeader(storage).dirty);
  chain.finish();
  t.is(checkStorage(storage).leaks, 0);
});

test('writeZeroes(): the need-check bit is on disk before the table changes, also when it goes off meanwhile', (t) => {
  const { storage, one, two } = twoThreads();
  write(one, 0, 2 * CLUSTER, 1);
  one.flush();
  const { records } = one.layer.state;
  const start = records.startRemap.bind(records);
  records.startRemap = (from, to) => {
    maintain(two, Date.now() + LATER);
    start(from, to);
  };
  one.writeZeroes(0, CLUSTER);
  t.true(one.layer.state.dirtySlots > 0);
  t.is(one.layer.state.needCheck, NEED_CHECK_SET);
  t.true(readQedHeader(storage).dirty);
});

test('prepareTables(): the need-check bit is on disk before L1 changes, also when it goes off meanwhile', (t) => {
  const { storage, one, two } = twoThreads();
  write(one, 0, CLUSTER, 1);
  one.flush();
  const { metaMutex } = one.layer.state;
  const lock = metaMutex.lock.bind(metaMutex);
  let seen: number | undefined;
  metaMutex.lock = () => {
    metaMutex.lock = lock;
    maintain(two, Date.now() + LATER);
    lock();
  };
  const { records } = one.layer.state;
  const start = records.startRemap.bind(records);
  records.startRemap = (from, to) => {
    seen = one.layer.state.dirtySlots > 0 && !readQedHeader(storage).dirty ? 1 : 0;
    start(from, to);
  };
  write(one, 2 * MIB, 512, 2);
  t.is(seen, 0, 'L1 differs from the file while the bit is off');
});

test('writeZeroes() to the end of the disk does not reach what is written behind it after growing', (t) => {
  for (const backing of [false, true]) {
    const { one, two } = twoThreads({ backing });
    const last = SIZE - 512;
    write(one, last, 512, 1);
    let behind: Uint8Array | undefined;
    const { records } = one.layer.state;
    const start = records.startRemap.bind(records);
    records.startRemap = (from, to) => {
      records.startRemap = start;
      two.resize(SIZE + MIB);
      behind = write(two, SIZE, 1024, 2);
      start(from, to);
    };
    one.writeZeroes(last, 512);
    t.deepEqual(read(one, SIZE, 1024), behind, 'acknowledged bytes that nobody zeroed');
    t.true(read(one, last, 512).every((byte) => byte === 0));
  }
});

test('the need-check bit goes off at close though writing the header failed once before', (t) => {
  const { storage, one, hooks, chain } = twoThreads();
  write(one, 0, CLUSTER, 1);
  one.flush();
  hooks.at('header-update', 'before', () => {
    throw new Error('the host failed');
  });
  maintain(one, Date.now() + LATER);
  t.is(hooks.waiting, 0);
  t.true(readQedHeader(storage).dirty);
  chain.finish();
  t.false(readQedHeader(storage).dirty);
});

test('a header that was perhaps not written is written again before the next table changes', (t) => {
  const { storage, one, hooks } = twoThreads();
  write(one, 0, CLUSTER, 1);
  one.flush();
  hooks.at('header-update', 'after', () => {
    throw new Error('the host failed, and wrote it all the same');
  });
  maintain(one, Date.now() + LATER);
  t.is(hooks.waiting, 0);
  write(one, CLUSTER, CLUSTER, 1);
  t.true(readQedHeader(storage).dirty);
});

test('a dropped cluster is not reused while a reader that began before holds the old mapping', (t) => {
  const { one, two, hooks, chain } = twoThreads();
  const old = write(one, 0, CLUSTER, 1);
  one.flush();
  hooks.at('read', 'before', () => {
    two.writeZeroes(0, CLUSTER);
    for (let i = 0; i < 3; i++) two.flush();
    for (let i = 1; i < 100; i++) write(two, i * CLUSTER, CLUSTER, 2);
  });
  t.deepEqual(read(one, 0, CLUSTER), old, 'the place still holds what it held when the read began');
  t.is(hooks.waiting, 0);
  two.flush();
  const end = one.layer.state.fileEnd;
  write(two, 200 * CLUSTER, CLUSTER, 3);
  t.is(one.layer.state.fileEnd, end, 'afterwards it is used again');
  chain.finish();
});

test('a dropped cluster is not reused while a write in place is under way to it', (t) => {
  const { one, two, hooks } = twoThreads();
  write(one, 0, CLUSTER, 1);
  one.flush();
  let other: Uint8Array | undefined;
  hooks.at('data-write', 'before', () => {
    two.writeZeroes(0, CLUSTER);
    for (let i = 0; i < 3; i++) two.flush();
    other = write(two, 10 * CLUSTER, CLUSTER, 2);
  });
  write(one, 0, CLUSTER, 3);
  t.is(hooks.waiting, 0);
  t.deepEqual(read(one, 10 * CLUSTER, CLUSTER), other);
});

test('a write published during a flush is in the next flush, and not torn out of this one', (t) => {
  const { storage, one, two, hooks } = twoThreads();
  const first = write(one, 0, CLUSTER, 1);
  let second: Uint8Array | undefined;
  hooks.at('flush-data', 'before', () => {
    second = write(two, CLUSTER, CLUSTER, 2);
  });
  one.flush();
  // As after a power cut: what is in the file now.
  const now = openChainOf([storage], { readOnly: true });
  t.deepEqual(read(now.node, 0, CLUSTER), first);
  t.true(read(now.node, CLUSTER, CLUSTER).every((byte) => byte === 0));
  one.flush();
  const then = openChainOf([storage], { readOnly: true });
  t.deepEqual(read(then.node, CLUSTER, CLUSTER), second);
});

test('readers see the old bytes until an allocating write is done, then the new ones', (t) => {
  const { one, two, hooks } = twoThreads({ backing: true });
  const old = read(one, 0, CLUSTER);
  hooks.at('cow-write', 'after', () => {
    t.deepEqual(read(two, 0, CLUSTER), old);
  });
  const bytes = write(one, 100, 200, 5);
  t.is(hooks.waiting, 0);
  const expected = old.slice();
  expected.set(bytes, 100);
  t.deepEqual(read(two, 0, CLUSTER), expected);
});

test('a failed allocating write leaves the neighbours that another thread wrote meanwhile', (t) => {
  const { storage, one, two, hooks, chain } = twoThreads({ backing: true });
  let other: Uint8Array | undefined;
  hooks.at('cow-write', 'before', () => {
    other = write(two, 5 * CLUSTER, CLUSTER, 9);
    throw new Error('the host failed');
  });
  const before = read(one, 0, CLUSTER);
  t.throws(() => write(one, 100, 200, 5), { message: 'the host failed' });
  t.deepEqual(read(two, 0, CLUSTER), before);
  t.deepEqual(read(one, 5 * CLUSTER, CLUSTER), other);
  chain.finish();
  const result = checkStorage(storage);
  t.deepEqual([result.corruptions, result.leaks], [0, 0]);
});

test('resize() after a failed sync is refused: nothing can be promised any more', (t) => {
  const { storage, one, hooks } = twoThreads();
  write(one, 0, CLUSTER, 1);
  hooks.at('flush-data', 'before', () => {
    throw new Error('the host lost pages');
  });
  t.throws(() => one.flush());
  t.throws(() => one.resize(SIZE + MIB));
  t.is(one.size(), SIZE);
  t.is(readQedHeader(storage).virtualSize, SIZE);
});

test('allocate() makes place also where another thread has written a part of the cluster meanwhile', (t) => {
  const { one, two } = twoThreads();
  const { records } = one.layer.state;
  const start = records.startRemap.bind(records);
  records.startRemap = (from, to) => {
    records.startRemap = start;
    write(two, 0, 512, 1);
    start(from, to);
  };
  const { storage } = one;
  let reserved = 0;
  const allocate = storage.allocate.bind(storage);
  storage.allocate = (offset, length, event) => {
    if (event === 'data-write') reserved += length;
    allocate(offset, length, event);
  };
  one.allocate(0, CLUSTER);
  t.is(reserved, CLUSTER);
});
