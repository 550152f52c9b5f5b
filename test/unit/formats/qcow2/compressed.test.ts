/** Compressed clusters and their places: how they share host clusters, and that a place used again is not read as before. */
import test from 'ava';
import { deleteSnapshot, openSnapshot, revertToSnapshot, takeSnapshot } from '../../../../src/block/snapshots';
import type { CreateOptions } from '../../../../src/formats/format';
import { qcow2Format } from '../../../../src/formats/qcow2/format';
import { readQcow2Header } from '../../../../src/formats/qcow2/header';
import { MemoryStorage } from '../../../../src/storage/memory';
import { KIB, MIB } from '../../../../src/units';
import { checkStorage, openChainOf } from '../../../helpers/images';

const CLUSTER = 64 * KIB;
const compressed = { compressed: true };

function image(options: Partial<CreateOptions> = {}): MemoryStorage {
  const storage = MemoryStorage.create(16 * MIB, 'a.qcow2');
  qcow2Format.create?.(storage, { size: 4 * MIB, ...options });
  return storage;
}

/** Becomes a stream of some hundred bytes. */
const filled = (byte: number) => Buffer.alloc(CLUSTER, byte);

for (const compressionType of ['zlib', 'zstd'] as const) {
  test(`${compressionType}: small streams lie in one host cluster, which is free when the last one is given up`, (t) => {
    const storage = image({ compressionType });
    const chain = openChainOf([storage]);
    const { node } = chain;
    const { state } = node.layer;
    node.write(0, filled(1), 0, CLUSTER, compressed);
    const end = state.fileEnd;
    for (let i = 1; i < 20; i++) node.write(i * CLUSTER, filled(i + 1), 0, CLUSTER, compressed);
    t.is(state.fileEnd, end, 'all of them in the first cluster');
    for (let i = 0; i < 20; i++) {
      t.true(node.layerStatus(i * CLUSTER, 1).compressed);
      node.writeZeroes(i * CLUSTER, CLUSTER);
    }
    node.flush();
    node.flush();
    t.is(state.free.total(), CLUSTER);
    chain.finish();
    const result = checkStorage(storage);
    t.deepEqual([result.corruptions, result.checkErrors, result.leaks], [0, 0, 0], result.messages.join('; '));
  });
}

test('a cluster whose count is at its highest takes no more streams', (t) => {
  const storage = image({ refcountBits: 2 });
  const chain = openChainOf([storage]);
  for (let i = 0; i < 12; i++) chain.node.write(i * CLUSTER, filled(i + 1), 0, CLUSTER, compressed);
  const bytes = filled(0);
  for (let i = 0; i < 12; i++) {
    chain.node.read(i * CLUSTER, bytes, 0, CLUSTER);
    t.deepEqual([bytes[0], bytes[CLUSTER - 1]], [i + 1, i + 1]);
  }
  chain.finish();
  t.is(checkStorage(storage).corruptions, 0);
  t.is(readQcow2Header(storage).refcountOrder, 1);
});

test('a stream in a place that held another one is read, not the one that was there', (t) => {
  const chain = openChainOf([image()]);
  const { node } = chain;
  const bytes = filled(0);
  for (let round = 1; round < 12; round++) {
    node.write(0, filled(round), 0, CLUSTER, compressed);
    node.read(0, bytes, 0, CLUSTER);
    t.is(bytes[CLUSTER - 1], round);
    node.write(0, Buffer.alloc(CLUSTER), 0, CLUSTER, round % 2 === 0 ? compressed : undefined);
    node.flush();
    node.flush();
  }
  // What a revert and a deletion free takes no way through a flush.
  for (let round = 1; round < 6; round++) {
    const { id } = takeSnapshot(node, 's');
    node.write(CLUSTER, filled(round), 0, CLUSTER, compressed);
    node.read(CLUSTER, bytes, 0, CLUSTER);
    t.is(bytes[0], round);
    revertToSnapshot(node, id);
    node.write(2 * CLUSTER, filled(100 + round), 0, CLUSTER, compressed);
    node.read(2 * CLUSTER, bytes, 0, CLUSTER);
    t.is(bytes[0], 100 + round);
    openSnapshot(node, id).read(2 * CLUSTER, bytes, 0, CLUSTER);
    t.is(bytes[0], round === 1 ? 0 : 99 + round);
    deleteSnapshot(node, id);
  }
  chain.finish();
});
