/** Valid images that the fuzzer damages: each kind in a few shapes, small, the same in every run. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { deflateRawSync } from 'node:zlib';
import type { BlockNode } from '../../src/block/node';
import { takeSnapshot } from '../../src/block/snapshots';
import { formatByName } from '../../src/formats/registry';
import { FileStorage } from '../../src/storage/file';
import { alignUp, KIB } from '../../src/units';
import { createImage, type ImageSpec, open } from '../helpers/images';
import { Qcow2Bytes } from '../helpers/qcow2-bytes';
import { patternBytes, Random } from '../helpers/random';

/** What `--format` takes and what the report has a line for. */
export const KINDS = [
  'raw',
  'qed',
  'qcow2',
  'qcow2-v2',
  'qcow2-subclusters',
  'qcow2-data-file',
  'qcow2-compressed',
  'qcow2-snapshots',
  'qcow2-bitmaps',
  'qcow',
] as const;
export type Kind = (typeof KINDS)[number];

export interface Seed {
  name: string;
  kind: Kind;
  format: ImageSpec['format'];
  bytes: Buffer;
}

/** Files beside every image, which a valid image may name. */
export const BASE_RAW = 'base.raw';
export const BASE_QCOW2 = 'base.qcow2';
export const DATA_FILE = 'data.raw';
/** Bytes of the disk of most images. */
const SIZE = 256 * KIB;
/** 2026-01-01: what is written into the images must not change from run to run. */
const DATE_SECONDS = 1_767_225_600;

interface Recipe {
  kind: Kind;
  spec: Omit<ImageSpec, 'size'> & { size?: number };
  /** Changes of the file after the usual writes. */
  after?: (file: string) => void;
  snapshots?: number;
}

const raw = { name: `./././././././././${BASE_RAW}`, format: 'raw' };
const qcow2 = { name: `./././././././././${BASE_QCOW2}`, format: 'qcow2' };
const unsaid = { name: `./././././././././${BASE_QCOW2}` };

const RECIPES: Recipe[] = [
  { kind: 'raw', spec: { format: 'raw', size: 64 * KIB } },
  { kind: 'qed', spec: { format: 'qed', clusterSize: 4096, tableSize: 1 } },
  { kind: 'qed', spec: { format: 'qed', clusterSize: 4096, tableSize: 2, backing: raw } },
  { kind: 'qed', spec: { format: 'qed', clusterSize: 4096, tableSize: 1, backing: unsaid } },
  { kind: 'qcow2', spec: { format: 'qcow2', clusterSize: 512 } },
  { kind: 'qcow2', spec: { format: 'qcow2', clusterSize: 4096, lazyRefcounts: true, backing: raw } },
  { kind: 'qcow2', spec: { format: 'qcow2', clusterSize: 4096, refcountBits: 1, backing: qcow2 } },
  { kind: 'qcow2', spec: { format: 'qcow2', clusterSize: 1024, refcountBits: 64 } },
  { kind: 'qcow2-v2', spec: { format: 'qcow2', version: 2, clusterSize: 512 } },
  { kind: 'qcow2-v2', spec: { format: 'qcow2', version: 2, clusterSize: 4096, backing: unsaid }, snapshots: 1 },
  { kind: 'qcow2-subclusters', spec: { format: 'qcow2', extendedL2: true, clusterSize: 16384, backing: raw } },
  { kind: 'qcow2-subclusters', spec: { format: 'qcow2', extendedL2: true, clusterSize: 16384 }, snapshots: 1 },
  { kind: 'qcow2-data-file', spec: { format: 'qcow2', clusterSize: 4096, dataFile: { name: DATA_FILE, raw: false } } },
  { kind: 'qcow2-data-file', spec: { format: 'qcow2', clusterSize: 4096, dataFile: { name: DATA_FILE, raw: true } } },
  { kind: 'qcow2-compressed', spec: { format: 'qcow2', clusterSize: 4096 }, after: (file) => compress(file, 'zlib') },
  {
    kind: 'qcow2-compressed',
    spec: { format: 'qcow2', clusterSize: 4096, compressionType: 'zstd', backing: raw },
    after: (file) => compress(file, 'zstd'),
  },
  { kind: 'qcow2-snapshots', spec: { format: 'qcow2', clusterSize: 512 }, snapshots: 2 },
  { kind: 'qcow2-snapshots', spec: { format: 'qcow2', clusterSize: 4096, backing: qcow2 }, snapshots: 4 },
  { kind: 'qcow2-bitmaps', spec: { format: 'qcow2', clusterSize: 4096 }, after: addBitmaps },
  { kind: 'qcow2-bitmaps', spec: { format: 'qcow2', clusterSize: 512 }, after: addBitmaps, snapshots: 1 },
  { kind: 'qcow', spec: { format: 'qcow' } },
  { kind: 'qcow', spec: { format: 'qcow', backing: { name: raw.name } } },
  { kind: 'qcow', spec: { format: 'qcow' }, after: compressQcow },
];

/** The files that stand beside an image: base images and the data file. */
export function neighbours(directory: string): Map<string, Buffer> {
  const base = path.join(directory, BASE_QCOW2);
  build(base, { kind: 'qcow2', spec: { format: 'qcow2', clusterSize: 4096, size: SIZE } });
  const files = new Map([
    [BASE_RAW, Buffer.from(patternBytes(0, SIZE / 2, 3))],
    [BASE_QCOW2, fs.readFileSync(base)],
    [DATA_FILE, Buffer.from(patternBytes(0, SIZE, 4))],
  ]);
  fs.rmSync(base);
  return files;
}

/** @param directory to build them in: it has the neighbours, and is empty but for them afterwards */
export function seedsOf(kind: Kind, directory: string): Seed[] {
  return RECIPES.filter((recipe) => recipe.kind === kind).map((recipe, index) => {
    const file = path.join(directory, 'image');
    build(file, recipe);
    const bytes = fs.readFileSync(file);
    fs.rmSync(file);
    return { name: `${kind} ${index}`, kind, format: recipe.spec.format, bytes };
  });
}

function build(file: string, recipe: Recipe): void {
  const { spec, snapshots = 0, after } = recipe;
  if (spec.dataFile === undefined) createImage(file, { size: SIZE, ...spec });
  else createWithData(file, { size: SIZE, ...spec });
  const image = open(file, { backing: 'directory', format: spec.format });
  try {
    writeSome(image.node, 1);
    for (let index = 0; index < snapshots; index++) {
      takeSnapshot(image.node, `snapshot ${index}`);
      writeSome(image.node, index + 2);
    }
  } finally {
    image.close();
  }
  if (snapshots > 0) fixDates(file);
  if (spec.format === 'qcow') edit(file, (bytes) => bytes.writeUInt32BE(DATE_SECONDS, 20));
  after?.(file);
}

function createWithData(file: string, spec: ImageSpec): void {
  const storage = FileStorage.create(file);
  const data = FileStorage.create(path.join(path.dirname(file), DATA_FILE));
  try {
    formatByName(spec.format).create?.(storage, spec, data);
  } finally {
    data.close();
    storage.close();
  }
}

/** Data at both ends and between, zeroes, a part of a cluster. */
function writeSome(node: BlockNode, round: number): void {
  const random = new Random(round);
  const size = node.size();
  const write = (offset: number, length: number) => node.write(offset, patternBytes(offset, length, round), 0, length);
  if (round === 1) {
    write(node.format === 'raw' ? 4096 : 0, 20_000);
    write(size - 5000, 5000);
    node.writeZeroes(32 * KIB, 8192);
  }
  for (let i = 0; i < 3; i++) write(random.below(size - 4096), random.between(1, 4096));
  node.flush();
}

function edit(file: string, change: (bytes: Buffer) => unknown): void {
  const bytes = fs.readFileSync(file);
  const changed = change(bytes);
  fs.writeFileSync(file, Buffer.isBuffer(changed) ? changed : bytes);
}

/** Reference counts of a file that was changed by hand. */
function recount(file: string): void {
  const storage = FileStorage.open(file, { readOnly: false });
  try {
    const module = formatByName('qcow2');
    const result = module.check?.(module.readHeader(storage), storage, 'all');
    if (result === undefined || result.corruptions + result.leaks + result.checkErrors > 0) {
      throw new Error(`a seed is not sound: ${result?.messages.join('; ')}`);
    }
  } finally {
    storage.close();
  }
}

function fixDates(file: string): void {
  edit(file, (bytes) => {
    const image = new Qcow2Bytes(bytes);
    let at = image.snapshots;
    for (let index = 0; index < image.u32(60); index++) {
      image.set32(at + 16, DATE_SECONDS);
      image.set32(at + 20, 0);
      at = alignUp(at + 40 + image.u32(at + 36) + bytes.readUInt16BE(at + 12) + bytes.readUInt16BE(at + 14), 8);
    }
  });
}

/** Three clusters become streams at the end of the file. */
function compress(file: string, type: 'zlib' | 'zstd'): void {
  edit(file, (bytes) => {
    const image = new Qcow2Bytes(bytes);
    const { clusterSize } = image;
    const lengthShift = BigInt(62 - (Math.log2(clusterSize) - 8));
    const tail: Buffer[] = [];
    let end = bytes.length;
    for (const guest of [0, 1, 20]) {
      const stream = type === 'zlib' ? deflateRawSync(halfFull(clusterSize), { windowBits: 12 }) : frame(clusterSize);
      const sectors = Math.floor((end + stream.length - 1) / 512) - Math.floor(end / 512);
      image.set64(image.entryAt(guest), (1n << 62n) | (BigInt(sectors) << lengthShift) | BigInt(end));
      tail.push(stream);
      end += stream.length;
    }
    return Buffer.concat([bytes, ...tail, Buffer.alloc(alignUp(end, clusterSize) - end)]);
  });
  recount(file);
}

/** The same for qcow, which counts no references. */
function compressQcow(file: string): void {
  edit(file, (bytes) => {
    const clusterBits = bytes[32];
    const clusterSize = 2 ** clusterBits;
    const l1 = Number(bytes.readBigUInt64BE(40));
    const l2 = Number(bytes.readBigUInt64BE(l1));
    const stream = deflateRawSync(halfFull(clusterSize), { windowBits: 12 });
    const entry = (1n << 63n) | (BigInt(stream.length) << BigInt(63 - clusterBits)) | BigInt(bytes.length);
    bytes.writeBigUInt64BE(entry, l2 + 8);
    return Buffer.concat([bytes, stream]);
  });
}

function halfFull(clusterSize: number): Buffer {
  const cluster = Buffer.alloc(clusterSize, 7);
  cluster.set(patternBytes(0, clusterSize / 4, 9));
  return cluster;
}

/** A zstd frame of one raw block and one of a repeated byte; Node 20 cannot make one. */
function frame(clusterSize: number): Buffer {
  const block = (type: number, size: number, last: boolean): Buffer => {
    const head = Buffer.alloc(3);
    head.writeUIntLE((last ? 1 : 0) + type * 2 + size * 8, 0, 3);
    return head;
  };
  const head = Buffer.from([0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0, 0, 0, 0]);
  head.writeUInt32LE(clusterSize, 5);
  const data = Buffer.from(patternBytes(0, 256, 9));
  return Buffer.concat([head, block(0, 256, false), data, block(1, clusterSize - 256, true), Buffer.from([7])]);
}

/** A bitmap with a cluster, one with none, and the extension that names their directory. */
function addBitmaps(file: string): void {
  edit(file, (bytes) => {
    const image = new Qcow2Bytes(bytes);
    const { clusterSize } = image;
    const directory = alignUp(bytes.length, clusterSize);
    const table = directory + clusterSize;
    const grown = Buffer.concat([bytes, Buffer.alloc(directory + 3 * clusterSize - bytes.length)]);
    grown.fill(0x5a, table + clusterSize);
    grown.writeBigUInt64BE(BigInt(table + clusterSize), table);
    grown.writeBigUInt64BE(1n, table + 8);
    let at = directory;
    for (const [name, place, flags] of [
      ['first', table, 2],
      ['second', table + 8, 0],
    ] as const) {
      grown.writeBigUInt64BE(BigInt(place - (place % clusterSize)), at);
      grown.writeUInt32BE(name === 'first' ? 2 : 0, at + 8);
      grown.writeUInt32BE(flags, at + 12);
      grown[at + 16] = 1;
      grown[at + 17] = 16;
      grown.writeUInt16BE(name.length, at + 18);
      grown.write(name, at + 24);
      at = alignUp(at + 24 + name.length, 8);
    }
    let extension = grown.readUInt32BE(100);
    while (grown.readUInt32BE(extension) !== 0)
      extension = alignUp(extension + 8 + grown.readUInt32BE(extension + 4), 8);
    grown.writeUInt32BE(0x23852875, extension);
    grown.writeUInt32BE(24, extension + 4);
    grown.writeUInt32BE(2, extension + 8);
    grown.writeBigUInt64BE(BigInt(at - directory), extension + 16);
    grown.writeBigUInt64BE(BigInt(directory), extension + 24);
    grown.writeBigUInt64BE(grown.readBigUInt64BE(88) | 1n, 88);
    return grown;
  });
  recount(file);
}
