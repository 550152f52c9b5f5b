/** What the functions of block/snapshots.ts answer, and refuse. */
import * as path from 'node:path';
import test from 'ava';
import { mapEntries } from '../../../src/block/map-entries';
import type { BlockNode } from '../../../src/block/node';
import {
  deleteSnapshot,
  listSnapshots,
  openSnapshot,
  readVmState,
  renameSnapshot,
  revertToSnapshot,
  snapshotGeneration,
  supportsSnapshots,
  takeSnapshot,
} from '../../../src/block/snapshots';
import { checkQcow2 } from '../../../src/formats/qcow2/check';
import { readQcow2Header } from '../../../src/formats/qcow2/header';
import { encodeSnapshotTable, readSnapshotTable } from '../../../src/formats/qcow2/snapshot-table';
import { KIB, MIB } from '../../../src/units';
import {
  checkStorage,
  createImage,
  createInMemory,
  type ImageSpec,
  open,
  openChainOf,
  temporaryDirectory,
} from '../../helpers/images';
import { patternBytes } from '../../helpers/random';
import { checkSound } from '../../helpers/snapshot-images';
import { contentOf, firstDifference } from '../../helpers/snapshot-model';

function qcow2(spec: Partial<ImageSpec> = {}) {
  const storage = createInMemory({ format: 'qcow2', size: MIB, clusterSize: 4 * KIB, ...spec }, 8 * MIB);
  return { storage, ...openChainOf([storage]) };
}

const fill = (offset: number, length: number, tag: number) => patternBytes(offset, length, tag);

test('takeSnapshot() answers what the list says; ids go on from the largest', (t) => {
  const { node } = qcow2();
  t.true(supportsSnapshots(node));
  t.deepEqual(listSnapshots(node), []);
  const generation = snapshotGeneration(node);
  const first = takeSnapshot(node, 'a');
  const second = takeSnapshot(node, 'a');
  t.not(snapshotGeneration(node), generation);
  t.deepEqual(listSnapshots(node), [first, second]);
  t.deepEqual([first.id, second.id, first.name, first.virtualSize, first.vmStateSize], ['1', '2', 'a', MIB, 0]);
  t.true(Math.abs(first.dateSec - Date.now() / 1000) < 100);
  deleteSnapshot(node, '1');
  t.is(takeSnapshot(node, '').id, '3');
});

test('a snapshot keeps its bytes and its size while the disk goes on', (t) => {
  const { node, storage, finish } = qcow2();
  node.write(0, fill(0, 100 * KIB, 1), 0, 100 * KIB);
  const { id } = takeSnapshot(node, 'one');
  const bytes = contentOf(node);
  const snapshot = openSnapshot(node, id);
  node.resize(2 * MIB);
  node.write(50 * KIB, fill(50 * KIB, 2 * MIB - 50 * KIB, 2), 0, 2 * MIB - 50 * KIB);
  node.writeZeroes(0, 4 * KIB);
  t.true(snapshot.readOnly);
  t.is(snapshot.size(), MIB);
  t.is(firstDifference(contentOf(snapshot), bytes), undefined);
  t.like(snapshot.status(0, MIB), { data: true, present: true });
  t.like(snapshot.status(200 * KIB, 1000), { data: false, zero: true });
  t.throws(() => snapshot.write(0, bytes, 0, 512), { code: 'READ_ONLY' });
  t.throws(() => snapshot.read(MIB - 1, bytes, 0, 2), { code: 'OUT_OF_BOUNDS' });
  revertToSnapshot(node, id);
  t.is(node.size(), MIB);
  t.is(firstDifference(contentOf(node), bytes), undefined);
  finish();
  t.is(checkSound(storage), undefined);
});

test('a deleted snapshot cannot be read any more, also when a new one has its id', (t) => {
  const { node } = qcow2();
  node.write(0, fill(0, 8 * KIB, 1), 0, 8 * KIB);
  takeSnapshot(node, 'a');
  const snapshot = openSnapshot(node, '1');
  const bytes = new Uint8Array(512);
  snapshot.read(0, bytes, 0, 512);
  deleteSnapshot(node, '1');
  t.throws(() => snapshot.read(0, bytes, 0, 512), { code: 'NOT_FOUND', message: /"1"/ });
  t.throws(() => snapshot.status(0, 512), { code: 'NOT_FOUND' });
  t.is(takeSnapshot(node, 'b').id, '1');
  t.throws(() => snapshot.read(0, bytes, 0, 512), { code: 'NOT_FOUND' });
  t.notThrows(() => openSnapshot(node, '1').read(0, bytes, 0, 512));
  for (const change of [deleteSnapshot, revertToSnapshot, openSnapshot]) {
    t.throws(() => change(node, '7'), {
      code: 'NOT_FOUND',
      message: 'Cannot find snapshot "7" of "memory.qcow2": it does not exist',
    });
  }
  t.throws(() => renameSnapshot(node, '7', 'x'), { code: 'NOT_FOUND' });
});

test('deleting gives back all that only the snapshot held', (t) => {
  const { node, storage, finish } = qcow2();
  node.write(0, fill(0, 512 * KIB, 1), 0, 512 * KIB);
  node.flush();
  const before = checkStorage(storage).allocatedClusters;
  const { id } = takeSnapshot(node, 'x');
  node.write(0, fill(0, 512 * KIB, 2), 0, 512 * KIB);
  deleteSnapshot(node, id);
  // In place again: nothing is shared.
  const end = storage.size();
  node.write(0, fill(0, 512 * KIB, 3), 0, 512 * KIB);
  node.flush();
  t.is(storage.size(), end);
  finish();
  t.is(checkStorage(storage).allocatedClusters, before);
  t.is(checkSound(storage), undefined);
});

test('renameSnapshot() keeps everything but the name', (t) => {
  const { node, storage, finish } = qcow2();
  const taken = takeSnapshot(node, 'old');
  const open = openSnapshot(node, taken.id);
  renameSnapshot(node, taken.id, 'neu: ä');
  t.deepEqual(listSnapshots(node), [{ ...taken, name: 'neu: ä' }]);
  t.notThrows(() => open.read(0, new Uint8Array(1), 0, 1));
  t.throws(() => renameSnapshot(node, taken.id, 'x'.repeat(256)), {
    code: 'LIMIT_EXCEEDED',
    message: /256 bytes, at most 255/,
  });
  finish();
  t.is(checkSound(storage), undefined);
});

test('readVmState() reads what lies behind the disk, to its exact end', (t) => {
  // Where an L2 table of 64 entries ends, 32 KiB, the state of a disk of that size begins.
  const { node, storage, finish } = qcow2({ clusterSize: 512, size: 96 * KIB });
  const state = fill(32 * KIB, 40_000, 9);
  node.write(32 * KIB, state, 0, state.length);
  takeSnapshot(node, 'running');
  finish();
  const header = readQcow2Header(storage);
  const [snapshot] = readSnapshotTable(storage, header);
  const table = encodeSnapshotTable([{ ...snapshot, virtualSize: 32 * KIB, vmStateSize: state.length }]);
  storage.write(header.snapshotsOffset, table, 0, table.length, 'create');
  const again = openChainOf([storage]);
  t.like(listSnapshots(again.node)[0], { vmStateSize: state.length, virtualSize: 32 * KIB });
  const found = new Uint8Array(50_000);
  t.is(readVmState(again.node, '1', 0, found, 0, found.length), state.length);
  t.is(firstDifference(found.subarray(0, state.length), state), undefined);
  t.is(readVmState(again.node, '1', 39_990, found, 5, 100), 10);
  t.is(firstDifference(found.subarray(5, 15), state.subarray(39_990)), undefined);
  t.is(readVmState(again.node, '1', 40_000, found, 0, 1), 0);
  // The disk takes the snapshot's size, without the state.
  revertToSnapshot(again.node, '1');
  t.is(again.node.size(), 32 * KIB);
  deleteSnapshot(again.node, '1');
  again.finish();
  t.is(checkSound(storage), undefined);
});

test('version 2: the disk does not grow while it has snapshots', (t) => {
  const { node } = qcow2({ version: 2 });
  takeSnapshot(node, 'x');
  t.throws(() => node.resize(2 * MIB), { code: 'UNSUPPORTED_FEATURE', message: /keeps its size/ });
  deleteSnapshot(node, '1');
  t.notThrows(() => node.resize(2 * MIB));
});

test('version 2: a snapshot of another size is not reverted to', (t) => {
  const { storage, node, finish } = qcow2({ version: 2 });
  takeSnapshot(node, 'x');
  finish();
  const header = readQcow2Header(storage);
  const [snapshot] = readSnapshotTable(storage, header);
  const table = encodeSnapshotTable([{ ...snapshot, virtualSize: 512 * KIB }]);
  storage.write(header.snapshotsOffset, table, 0, table.length, 'create');
  const again = openChainOf([storage]).node;
  t.throws(() => revertToSnapshot(again, '1'), { code: 'UNSUPPORTED_FEATURE', message: /version 2/ });
  t.is(again.size(), MIB);
});

test('counts of one bit cannot be shared: nothing is taken, and nothing is left behind', (t) => {
  const { node, storage, finish } = qcow2({ refcountBits: 1 });
  node.write(0, fill(0, 300 * KIB, 1), 0, 300 * KIB);
  t.throws(() => takeSnapshot(node, 'x'), { code: 'LIMIT_EXCEEDED', message: /1 bits, at most 1 references/ });
  t.deepEqual(listSnapshots(node), []);
  const end = storage.size();
  node.write(0, fill(0, 300 * KIB, 2), 0, 300 * KIB);
  t.is(storage.size(), end, 'written in place');
  finish();
  t.is(checkSound(storage), undefined);
});

test('formats without snapshots, and read-only images', (t) => {
  const qed = openChainOf([createInMemory({ format: 'qed', size: MIB }, 4 * MIB)]).node;
  t.false(supportsSnapshots(qed));
  t.deepEqual(listSnapshots(qed), []);
  t.is(snapshotGeneration(qed), 0);
  t.throws(() => takeSnapshot(qed, 'x'), { code: 'UNSUPPORTED_FEATURE' });
  const { node, storage, finish } = qcow2();
  node.write(0, fill(0, KIB, 1), 0, KIB);
  takeSnapshot(node, 'x');
  finish();
  const reader = openChainOf([storage], { readOnly: true }).node;
  t.is(listSnapshots(reader).length, 1);
  t.is(firstDifference(contentOf(openSnapshot(reader, '1')).subarray(0, KIB), fill(0, KIB, 1)), undefined);
  for (const change of [
    () => takeSnapshot(reader, 'y'),
    () => deleteSnapshot(reader, '1'),
    () => renameSnapshot(reader, '1', 'z'),
  ]) {
    t.throws(change, { code: 'READ_ONLY' });
  }
  // A snapshot has none itself.
  t.false(supportsSnapshots(openSnapshot(reader, '1')));
});

test('hundreds of snapshots: the table has several clusters', (t) => {
  const { node, storage, finish } = qcow2({ clusterSize: 512 });
  for (let i = 0; i < 200; i++) {
    node.write(i * 512, fill(i * 512, 512, i), 0, 512);
    takeSnapshot(node, `snapshot number ${i}`);
  }
  t.is(listSnapshots(node).length, 200);
  for (const { id } of listSnapshots(node)) if (Number(id) % 3 > 0) deleteSnapshot(node, id);
  const kept = listSnapshots(node);
  t.is(kept.length, 66);
  for (const { id } of kept) {
    const bytes = contentOf(openSnapshot(node, id));
    const number = Number(id);
    t.is(
      firstDifference(bytes.subarray((number - 1) * 512, number * 512), fill((number - 1) * 512, 512, number - 1)),
      undefined,
    );
    t.is(bytes[number * 512], 0);
  }
  finish();
  t.is(checkSound(storage), undefined);
});

test('the map of a snapshot shows holes of the image file, as that of the live disk does', (t) => {
  const file = path.join(temporaryDirectory(t), 'image.qcow2');
  createImage(file, { format: 'qcow2', size: 4 * MIB, preallocation: 'metadata' });
  const image = open(file);
  t.teardown(() => image.close());
  const { node } = image;
  node.write(MIB, fill(MIB, 64 * KIB, 1), 0, 64 * KIB);
  const map = (of: BlockNode) => [...mapEntries(of, { start: 0, length: of.size() })];
  const { id } = takeSnapshot(node, 'one');
  const live = map(node);
  t.deepEqual(
    live.map(({ length, zero }) => [length, zero]),
    [
      [MIB, true],
      [64 * KIB, false],
      [3 * MIB - 64 * KIB, true],
    ],
  );
  t.deepEqual(map(openSnapshot(node, id)), live);
});

test('a snapshot whose sizes are too large keeps nobody from the others and from the disk', (t) => {
  const cases: [name: string, place: number, value: bigint, message: RegExp][] = [
    ['disk of 2^60', 48, 2n ** 60n, /disk size 0x1000000000000000 is larger than 0x/],
    ['disk of 2^64 - 512', 48, 2n ** 64n - 512n, /disk size 0xfffffffffffffe00 is larger than 0x/],
    ['VM state of 2^60', 40, 2n ** 60n, /VM state size 0x1000000000000000 is larger than 0x/],
  ];
  for (const [name, place, value, message] of cases) {
    const { node, storage, finish } = qcow2();
    node.write(0, fill(0, 8 * KIB, 1), 0, 8 * KIB);
    takeSnapshot(node, 'large');
    finish();
    const size = Buffer.alloc(8);
    size.writeBigUInt64BE(value);
    storage.write(readQcow2Header(storage).snapshotsOffset + place, size, 0, 8, 'create');
    t.is(checkSound(storage), undefined, name);
    const again = openChainOf([storage]);
    for (const use of [openSnapshot, revertToSnapshot]) {
      t.throws(() => use(again.node, '1'), { code: 'LIMIT_EXCEEDED', message }, name);
    }
    const { id } = takeSnapshot(again.node, 'two');
    t.notThrows(() => openSnapshot(again.node, id));
    // The table has been written anew: what the entry says is still there.
    storage.read(readQcow2Header(storage).snapshotsOffset + place, size, 0, 8);
    t.is(size.readBigUInt64BE(), value, name);
    deleteSnapshot(again.node, '1');
    again.finish();
    t.is(checkSound(storage), undefined, name);
  }
});

test('check -r all cuts extra data of a snapshot that is more than anybody reads', (t) => {
  const { node, storage, finish } = qcow2();
  takeSnapshot(node, 'first');
  takeSnapshot(node, 'second');
  finish();
  const header = readQcow2Header(storage);
  const [first, second] = readSnapshotTable(storage, header);
  const extra = Buffer.concat([first.extra, Buffer.alloc(2000 - first.extra.length, 7)]);
  const table = encodeSnapshotTable([{ ...first, extra }, second]);
  t.true(table.length < 4 * KIB);
  storage.write(header.snapshotsOffset, table, 0, table.length, 'create');
  t.throws(() => openChainOf([storage]), { code: 'LIMIT_EXCEEDED', message: /2000 bytes.*check -r all/ });
  const found = checkStorage(storage);
  t.deepEqual(
    [found.corruptions, found.leaks, found.messages],
    [1, 0, ['ERROR snapshot table entry 0 has too much extra metadata (2000 > 1024)']],
  );
  checkQcow2(readQcow2Header(storage), storage, 'all');
  t.is(checkSound(storage), undefined);
  const kept = readSnapshotTable(storage, readQcow2Header(storage));
  t.deepEqual(
    kept.map(({ name, id }) => [name, id]),
    [
      ['first', '1'],
      ['second', '2'],
    ],
  );
  t.deepEqual(Buffer.from(kept[0].extra), extra.subarray(0, 1024));
});
