/** The bits of the header: need-check, autoclear, compat; when they change, and when they are on disk. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import test from 'ava';
import { imageHeaderOf, maintain } from '../../../src/block/open';
import { BlockError } from '../../../src/errors';
import { readQedHeader } from '../../../src/formats/qed/header';
import { MemoryStorage } from '../../../src/storage/memory';
import { type RecordedOperation, RecordingStorage } from '../../../src/storage/recording';
import { KIB, MIB } from '../../../src/units';
import { checkFile, createImage, createInMemory, open, openChainOf, temporaryDirectory } from '../../helpers/images';
import { patternBytes } from '../../helpers/random';

const SIZE = 4 * MIB;
const QED = { format: 'qed', size: SIZE, clusterSize: 4 * KIB, tableSize: 1 } as const;
const SECOND = 1000;

function recorded(backed = false) {
  const storage = createInMemory({ ...QED, backing: backed ? { name: 'base', format: 'raw' } : undefined }, 8 * MIB);
  const log: RecordedOperation[] = [];
  const layers = backed ? [storage, createInMemory({ format: 'raw', size: SIZE }, SIZE)] : [storage];
  const chain = openChainOf(layers, { wrap: (below) => new RecordingStorage(below, log) });
  const write = (offset: number, length: number) =>
    chain.node.write(offset, patternBytes(offset, length, 1), 0, length);
  return { storage, chain, node: chain.node, log, write };
}

const events = (log: RecordedOperation[]) => log.map((operation) => `${operation.kind} ${operation.event}`);

test('need-check is set and synced before anything of the first allocating write reaches the file', (t) => {
  const { storage, node, log, write } = recorded();
  node.flush();
  t.deepEqual(log, [], 'a flush of nothing does nothing');
  write(0, 100);
  t.deepEqual(events(log).slice(0, 2), ['write header-update', 'sync flush-header']);
  t.true(readQedHeader(storage).dirty);
  t.true(imageHeaderOf(node).dirty);
  log.length = 0;
  write(MIB, 100);
  t.false(
    events(log).some((event) => event.includes('header')),
    'only once',
  );
});

test('a write in place does not set need-check', (t) => {
  const { storage, node, chain, log, write } = recorded();
  write(0, 4 * KIB);
  node.flush();
  maintain(node, Date.now() + 6 * SECOND);
  t.false(readQedHeader(storage).dirty);
  log.length = 0;
  write(0, 100);
  node.flush();
  t.deepEqual(events(log), ['write data-write', 'sync flush-data']);
  chain.finish();
  t.false(readQedHeader(storage).dirty);
});

test('tables reach the file between two syncs, after the data', (t) => {
  const { node, log, write } = recorded();
  write(0, 4 * KIB);
  log.length = 0;
  node.flush();
  t.deepEqual(events(log), ['sync flush-data', 'write l2-update', 'write l1-update', 'sync flush-l2']);
});

test('maintain(): flushes what is 5 s old, then clears need-check 5 s after the last allocation', (t) => {
  const { storage, node, log, write } = recorded();
  const start = Date.now();
  write(0, 100);
  const done = Date.now();
  log.length = 0;
  maintain(node, start + 4.9 * SECOND);
  t.deepEqual(log, []);
  maintain(node, done + 5 * SECOND);
  t.deepEqual(events(log).slice(-3), ['sync flush-l2', 'write header-update', 'sync flush-header']);
  t.false(readQedHeader(storage).dirty);
  t.false(imageHeaderOf(node).dirty);
  log.length = 0;
  maintain(node, done + 60 * SECOND);
  t.deepEqual(log, [], 'nothing is left to do');
});

test('maintain(): need-check stays while a table is not flushed, and no longer for data written in place', (t) => {
  const { storage, node, write } = recorded();
  write(0, 4 * KIB);
  node.flush();
  const later = Date.now() + 60 * SECOND;
  const { state } = node.layer;
  // Allocated at this moment: its date is new, so no timed flush comes first.
  write(8 * KIB, 4 * KIB);
  state.dirtySince = later;
  maintain(node, later);
  t.true(readQedHeader(storage).dirty);
  node.flush();
  write(0, 100);
  state.dirtySince = later;
  maintain(node, later);
  t.true(state.dataDirty);
  t.false(readQedHeader(storage).dirty);
});

test('closing clears need-check after everything is in the file, and gives the tail back', (t) => {
  const { storage, chain, log, write } = recorded();
  write(0, 100);
  log.length = 0;
  chain.finish();
  t.deepEqual(events(log).slice(-3), ['truncate cluster-free', 'write header-update', 'sync flush-header']);
  t.false(readQedHeader(storage).dirty);
  t.is(storage.size() % (4 * KIB), 0);
  // Header, L1, one L2 table, one cluster.
  t.is(storage.size(), 4 * 4 * KIB);
});

test('an image with a backing file never has need-check', (t) => {
  const { storage, node, chain, log, write } = recorded(true);
  write(0, 100);
  node.writeZeroes(MIB, 64 * KIB);
  node.flush();
  maintain(node, Date.now() + 60 * SECOND);
  chain.finish();
  t.false(events(log).some((event) => event.includes('header')));
  t.false(readQedHeader(storage).dirty);
});

/** Sets a 64-bit field of the header in the file. */
function patch(file: string, offset: number, value: bigint): void {
  const fd = fs.openSync(file, 'r+');
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(value);
  fs.writeSync(fd, bytes, 0, 8, offset);
  fs.closeSync(fd);
}

function field(file: string, offset: number): bigint {
  return fs.readFileSync(file).readBigUInt64LE(offset);
}

const FEATURES = 16;
const COMPAT = 24;
const AUTOCLEAR = 32;

test('autoclear bits go off when the image is opened for writing, and only then; compat bits stay', (t) => {
  const file = path.join(temporaryDirectory(t), 'a.qed');
  createImage(file, QED);
  patch(file, AUTOCLEAR, 0xf0f0n);
  patch(file, COMPAT, 0x8000_0000_0000_0001n);
  open(file, { readOnly: true }).close();
  t.is(field(file, AUTOCLEAR), 0xf0f0n);
  const image = open(file);
  t.is(field(file, AUTOCLEAR), 0n, 'before anything else');
  image.node.write(0, Buffer.alloc(512, 1), 0, 512);
  image.close();
  t.is(field(file, AUTOCLEAR), 0n);
  t.is(field(file, COMPAT), 0x8000_0000_0000_0001n);
});

test('unknown feature bits are refused, by name, and the file is left alone', (t) => {
  const file = path.join(temporaryDirectory(t), 'a.qed');
  createImage(file, QED);
  patch(file, FEATURES, 0x28n);
  const before = fs.readFileSync(file);
  for (const readOnly of [true, false]) {
    const error = t.throws(() => open(file, { readOnly }), { instanceOf: BlockError });
    t.is(error?.code, 'UNSUPPORTED_FEATURE');
    t.regex(error?.message ?? '', /0x28/);
  }
  t.deepEqual(fs.readFileSync(file), before);
});

test('an image that was not closed is checked when it is opened for writing; for reading it stays as it is', (t) => {
  const file = path.join(temporaryDirectory(t), 'a.qed');
  createImage(file, QED);
  const first = open(file, { lock: false });
  first.node.write(0, Buffer.alloc(64 * KIB, 7), 0, 64 * KIB);
  first.node.flush();
  first.node.write(MIB, Buffer.alloc(64 * KIB, 8), 0, 64 * KIB);
  // As after kill -9: what a copy of the file holds now.
  const copy = `${file}.copy`;
  fs.copyFileSync(file, copy);
  first.close();
  t.true(checkFile(copy).leaks > 0);
  const before = fs.readFileSync(copy);
  const reader = open(copy, { readOnly: true });
  t.true(imageHeaderOf(reader.node).dirty);
  reader.close();
  t.deepEqual(fs.readFileSync(copy), before);
  const writer = open(copy);
  t.false(imageHeaderOf(writer.node).dirty);
  const bytes = Buffer.alloc(64 * KIB);
  writer.node.read(0, bytes, 0, bytes.length);
  t.true(bytes.every((byte) => byte === 7));
  writer.close();
  t.is(checkFile(copy).leaks, 0);
});

test('an image that was not closed and has an entry past the end of the file opens for writing repaired', (t) => {
  const file = path.join(temporaryDirectory(t), 'a.qed');
  createImage(file, QED);
  patch(file, 4 * KIB, BigInt(400 * MIB));
  patch(file, FEATURES, 2n);
  const reader = open(file, { readOnly: true });
  const bytes = Buffer.alloc(512);
  t.is(t.throws(() => reader.node.read(0, bytes, 0, 512), { instanceOf: BlockError })?.code, 'CORRUPT_IMAGE');
  t.notThrows(() => reader.node.read(3 * MIB, bytes, 0, 512), 'only what the entry concerns');
  reader.close();
  const writer = open(file);
  writer.node.read(0, bytes, 0, 512);
  t.true(bytes.every((byte) => byte === 0));
  writer.close();
  t.is(checkFile(file).corruptions, 0);
});

test('a clean image with a wrong entry opens; the entry answers CORRUPT_IMAGE and nothing is written there', (t) => {
  const storage = MemoryStorage.create(8 * MIB);
  const { chain, write, storage: source } = recorded();
  write(0, 8 * KIB);
  chain.finish();
  const bytes = new Uint8Array(source.size());
  source.read(0, bytes, 0, bytes.length);
  storage.write(0, bytes, 0, bytes.length, 'create');
  // Guest cluster 1 points into the header.
  const l2 = Number(Buffer.from(bytes).readBigUInt64LE(4 * KIB));
  storage.write(l2 + 8, Buffer.from([0, 2, 0, 0, 0, 0, 0, 0]), 0, 8, 'create');
  const { node } = openChainOf([storage]);
  const buffer = new Uint8Array(4 * KIB);
  t.notThrows(() => node.read(0, buffer, 0, 4 * KIB));
  for (const attempt of [
    () => node.read(4 * KIB, buffer, 0, 512),
    () => node.write(4 * KIB, buffer, 0, 512),
    () => node.status(4 * KIB, 512),
  ]) {
    t.is(t.throws(attempt, { instanceOf: BlockError })?.code, 'CORRUPT_IMAGE');
  }
  const header = new Uint8Array(4 * KIB);
  storage.read(0, header, 0, header.length);
  t.deepEqual(header.subarray(0, 16), bytes.subarray(0, 16));
});
