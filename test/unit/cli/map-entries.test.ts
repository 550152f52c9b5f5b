import * as fs from 'node:fs';
import * as path from 'node:path';
import test from 'ava';
import { layerMapEntries, mapEntries } from '../../../src/block/map-entries';
import { type OpenImage, openImage } from '../../../src/block/open';
import { createTableCache } from '../../../src/shared/table-cache';
import { CraftedImage, headerBytes, temporaryDirectory } from '../formats/qed-bytes';

const CLUSTER = 0x1000;
const MIB = 1024 * 1024;

function opened(file: string): OpenImage {
  return openImage(file, {
    readOnly: true,
    backing: 'any',
    threads: 1,
    cache: createTableCache(MIB),
    imageId: 0,
    lock: false,
  });
}

const HOLE = { depth: 0, present: false, zero: true, data: false };
const DATA = { depth: 0, present: true, zero: false, data: true };
const ZERO = { depth: 0, present: true, zero: true, data: false };

test('mapEntries() merges what follows each other, also across tables', (t) => {
  // Tables of one cluster map 2 MiB each: the last entry of the first and the first two of the second follow each other.
  const image = new CraftedImage(t, { size: 0x40000000n }, 8).l1(0, 2).l1(1, 3);
  image.l2(2, 511, 4).l2(3, 0, 5).l2(3, 1, 6).l2(3, 2, 8).entry(3, 3, 1).entry(3, 4, 1);
  const { node, close } = opened(image.file);
  t.teardown(close);
  const start = 511 * CLUSTER;
  t.deepEqual(
    [...mapEntries(node, { start: 0, length: node.size() })],
    [
      { start: 0, length: start, ...HOLE },
      { start, length: 3 * CLUSTER, ...DATA, offset: 4 * CLUSTER },
      { start: start + 3 * CLUSTER, length: CLUSTER, ...DATA, offset: 8 * CLUSTER },
      { start: start + 4 * CLUSTER, length: 2 * CLUSTER, ...ZERO },
      { start: start + 6 * CLUSTER, length: 0x40000000 - start - 6 * CLUSTER, ...HOLE },
    ],
  );
});

test('mapEntries() keeps to the range and to the end of the disk', (t) => {
  const image = new CraftedImage(t, { size: 0x2200n }, 4).l1(0, 2).l2(2, 0, 3).l2(2, 1, 4).l2(2, 2, 5);
  const { node, close } = opened(image.file);
  t.teardown(close);
  const entries = (start: number, length: number) => [...mapEntries(node, { start, length })];
  t.deepEqual(entries(100, 50), [{ start: 100, length: 50, ...DATA, offset: 3 * CLUSTER + 100 }]);
  t.deepEqual(entries(0, 1e9), [{ start: 0, length: 0x2200, ...DATA, offset: 3 * CLUSTER }]);
  t.deepEqual(entries(0x21ff, 1e9), [{ start: 0x21ff, length: 1, ...DATA, offset: 5 * CLUSTER + 0x1ff }]);
  for (const [start, length] of [
    [0, 0],
    [0x2200, 512],
    [1e12, 1],
  ] as const) {
    t.deepEqual(entries(start, length), []);
  }
});

test('layerMapEntries() shows one layer, mapEntries() the chain', (t) => {
  const directory = temporaryDirectory(t);
  const base = path.join(directory, 'base.raw');
  fs.writeFileSync(base, Buffer.alloc(2 * CLUSTER, 1));
  fs.truncateSync(base, 4 * CLUSTER);
  const overlay = path.join(directory, 'over.qed');
  fs.writeFileSync(overlay, headerBytes({ size: 0x4000n, features: 5n, nameOffset: 64, nameSize: 8 }, 'base.raw'));
  fs.truncateSync(overlay, 4 * CLUSTER);
  const entry = Buffer.alloc(8);
  const fd = fs.openSync(overlay, 'r+');
  entry.writeBigUInt64LE(BigInt(2 * CLUSTER));
  fs.writeSync(fd, entry, 0, 8, CLUSTER);
  entry.writeBigUInt64LE(BigInt(3 * CLUSTER));
  fs.writeSync(fd, entry, 0, 8, 2 * CLUSTER + 8);
  fs.closeSync(fd);
  const { node, close } = opened(overlay);
  t.teardown(close);
  const range = { start: 0, length: node.size() };
  const own = { start: CLUSTER, length: CLUSTER, ...DATA, offset: 3 * CLUSTER };
  t.deepEqual(
    [...layerMapEntries(node, range)],
    [{ start: 0, length: CLUSTER, ...HOLE }, own, { start: 2 * CLUSTER, length: 2 * CLUSTER, ...HOLE }],
  );
  t.deepEqual(
    [...mapEntries(node, range)],
    [
      { start: 0, length: CLUSTER, ...DATA, depth: 1, offset: 0 },
      own,
      { start: 2 * CLUSTER, length: 2 * CLUSTER, ...ZERO, depth: 1, offset: 2 * CLUSTER },
    ],
  );
});
