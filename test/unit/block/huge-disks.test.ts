/** Disks of petabytes, empty but for a few clusters: finding out what is where takes steps by the thousand at most, not by the million. */
import * as path from 'node:path';
import test from 'ava';
import type { ImageNode } from '../../../src/block/image-node';
import { layerMapEntries, type MapEntry, mapEntries } from '../../../src/block/map-entries';
import { openSnapshot, takeSnapshot } from '../../../src/block/snapshots';
import { GIB, KIB, MIB } from '../../../src/units';
import { DiskFile } from '../../../src/vfs/disk-file';
import { createImage, type ImageSpec, open, temporaryDirectory } from '../../helpers/images';
import { patternBytes } from '../../helpers/random';

interface Shape {
  spec: ImageSpec & { size: number; clusterSize: number };
  /** L1 entries in a slice of the cache, times what an entry maps: bytes that one step can cover. */
  stride: number;
}

const TIB = 1024 * GIB;

const SHAPES: Shape[] = [
  { spec: { format: 'qed', size: 512 * TIB, clusterSize: 64 * KIB, tableSize: 16 }, stride: 16 * TIB },
  { spec: { format: 'qcow', size: 1 * TIB, clusterSize: 4 * KIB }, stride: 4096 * MIB },
  { spec: { format: 'qcow2', size: 1024 * TIB, clusterSize: 64 * KIB }, stride: 1 * TIB },
  { spec: { format: 'qcow2', size: 1024 * TIB, clusterSize: 2 * MIB }, stride: 1024 * TIB },
  { spec: { format: 'qcow2', size: 128 * TIB, clusterSize: 64 * KIB, extendedL2: true }, stride: 0.5 * TIB },
];

/** @returns steps that the layer took for it */
function counted<T>(node: ImageNode, body: () => T): { result: T; steps: number } {
  const { layer } = node;
  const real = layer.status;
  let steps = 0;
  layer.status = (guest, length) => {
    steps++;
    return real.call(layer, guest, length);
  };
  try {
    return { result: body(), steps };
  } finally {
    layer.status = real;
  }
}

const all = (node: ImageNode): MapEntry[] => [...mapEntries(node, { start: 0, length: node.size() })];

for (const { spec, stride } of SHAPES) {
  const { format, size, clusterSize } = spec;
  const name = `${format} of ${size / TIB} TiB, clusters of ${clusterSize}${spec.extendedL2 ? ', subclusters' : ''}`;
  test(`${name}: map and seek step over runs of missing tables`, (t) => {
    const file = path.join(temporaryDirectory(t), 'image');
    createImage(file, spec);
    const image = open(file);
    t.teardown(() => image.close());
    const node = image.node as ImageNode;
    const most = size / stride + 20;

    const empty = counted(node, () => all(node));
    t.deepEqual(empty.result, [{ start: 0, length: size, depth: 0, present: false, zero: true, data: false }]);
    t.true(empty.steps <= most, `${empty.steps} steps`);

    // One cluster in the middle, one at the end: neither is stepped over.
    const middle = size / 2 + 5 * clusterSize;
    const places = [middle, size - clusterSize];
    for (const place of places) node.write(place, patternBytes(0, clusterSize, 1), 0, clusterSize);
    const written = counted(node, () => all(node));
    t.deepEqual(
      written.result.map(({ start, length, data }) => [start, length, data]),
      [
        [0, middle, false],
        [middle, clusterSize, true],
        [middle + clusterSize, size - middle - 2 * clusterSize, false],
        [size - clusterSize, clusterSize, true],
      ],
    );
    // The L2 tables that are there now are gone through in slices of their own.
    t.true(written.steps <= most + 300, `${written.steps} steps`);

    const disk = new DiskFile(node, { ino: 1, mtimeMs: 0, times: new Float64Array(1), clock: 0 } as never, {
      writable: false,
      growable: false,
    });
    const found = counted(node, () => [disk.seek(0, 0, 'data'), disk.seek(0, middle, 'hole')]);
    t.deepEqual(found.result, [middle, middle + clusterSize]);
    t.true(found.steps <= most + 300, `${found.steps} steps`);
    if (format !== 'qcow2') return;

    const taken = openSnapshot(node, takeSnapshot(node, 'taken').id) as ImageNode;
    const kept = counted(taken, () => all(taken));
    t.deepEqual(kept.result, written.result);
    t.true(kept.steps <= most + 300, `${kept.steps} steps`);
  });
}

test('a huge overlay over a small base: what the base has is still found', (t) => {
  const directory = temporaryDirectory(t);
  const base = path.join(directory, 'base.qcow2');
  createImage(base, { format: 'qcow2', size: 3 * MIB });
  const lower = open(base);
  lower.node.write(MIB, patternBytes(0, 64 * KIB, 2), 0, 64 * KIB);
  lower.close();
  const file = path.join(directory, 'overlay.qcow2');
  createImage(file, { format: 'qcow2', size: 1024 * TIB, backing: { name: base, format: 'qcow2' } });
  const image = open(file);
  t.teardown(() => image.close());
  const node = image.node as ImageNode;
  const { result, steps } = counted(node, () => all(node));
  t.deepEqual(
    result.map(({ start, length, depth, data }) => [start, length, depth, data]),
    [
      [0, MIB, 1, false],
      [MIB, 64 * KIB, 1, true],
      [MIB + 64 * KIB, 2 * MIB - 64 * KIB, 1, false],
      [3 * MIB, 1024 * TIB - 3 * MIB, 0, false],
    ],
  );
  t.true(steps < 1100, `${steps} steps`);
  t.is([...layerMapEntries(node, { start: 0, length: node.size() })].length, 1);
});

test('the number of shapes', (t) => t.is(SHAPES.length, 5));
