/** The images on which power cuts are tried: of every part of a format that the order of writes depends on. */

import { MemoryStorage } from '../../src/storage/memory';
import { type RecordedOperation, RecordingStorage } from '../../src/storage/recording';
import type { Storage } from '../../src/storage/storage';
import { KIB, MIB } from '../../src/units';
import { createInMemory, type ImageSpec, type OpenedChain, openChainOf } from '../helpers/images';
import { FileState } from '../helpers/power-cut';
import { patternBytes } from '../helpers/random';

export interface CrashImage {
  name: string;
  /** What the top image is made with, but for its size and the files that it names. */
  image: Omit<ImageSpec, 'size' | 'backing' | 'dataFile'>;
  cluster: number;
  /** Bytes of disk that one table of second level maps. */
  span: number;
  size: number;
  /** Bytes of a raw backing file. */
  backing?: number;
  /** Has an external data file, which `raw` says must always read as the disk does. */
  data?: { raw: boolean };
  /** QEMU 7.2 does not open it. */
  unknownToQemu?: boolean;
}

export const BASE_NAME = 'base';
export const DATA_NAME = 'data';
const CAPACITY = 10 * MIB;

type Rest = Pick<CrashImage, 'backing' | 'data'>;

const qed = (name: string, cluster: number, tableSize: number, size: number, rest: Rest = {}): CrashImage => ({
  name: `qed ${name}`,
  image: { format: 'qed', clusterSize: cluster, tableSize },
  cluster,
  span: ((tableSize * cluster) / 8) * cluster,
  size,
  ...(tableSize === 1 ? { unknownToQemu: true } : {}),
  ...rest,
});

const qcow2 = (
  name: string,
  cluster: number,
  size: number,
  image: Partial<ImageSpec> = {},
  rest: Rest = {},
): CrashImage => ({
  name: `qcow2 ${name}`,
  image: { ...image, format: 'qcow2', clusterSize: cluster },
  cluster,
  span: (cluster / (image.extendedL2 ? 16 : 8)) * cluster,
  size,
  ...rest,
});

const qcow = (name: string, cluster: number, size: number, rest: Rest = {}): CrashImage => ({
  name: `qcow ${name}`,
  image: { format: 'qcow', clusterSize: cluster },
  cluster,
  // Tables are one cluster long without a backing file, else 4 KiB.
  span: (rest.backing === undefined ? cluster / 8 : 512) * cluster,
  size,
  ...rest,
});

const widths = [1, 2, 4, 8, 16, 32, 64].map((refcountBits) =>
  qcow2(`${refcountBits}-bit counts`, 512, 300 * KIB + 512, { refcountBits }),
);

export const IMAGES: readonly CrashImage[] = [
  qed('alone', 4 * KIB, 1, 4 * MIB + 3 * 512),
  qed('with larger tables', 4 * KIB, 2, 5 * MIB + 512),
  qed('over shorter raw', 4 * KIB, 2, 4 * MIB + 3 * 512, { backing: 3 * MIB + 512 }),
  qed('over longer raw', 4 * KIB, 1, 3 * MIB + 512, { backing: 5 * MIB }),
  qed('64 KiB over raw', 64 * KIB, 1, 2 * MIB + 512, { backing: 2 * MIB }),
  qcow2('alone', 4 * KIB, 4 * MIB + 3 * 512),
  qcow2('64 KiB clusters over shorter raw', 64 * KIB, 2 * MIB + 512, {}, { backing: MIB + 512 }),
  ...widths,
  qcow2('version 2', 512, 300 * KIB + 512, { version: 2 }),
  qcow2('version 2 over longer raw', KIB, 3 * MIB + 512, { version: 2 }, { backing: 5 * MIB }),
  qcow2('lazy refcounts', 4 * KIB, 3 * MIB + 512, { lazyRefcounts: true }),
  qcow2('lazy refcounts over raw', KIB, 700 * KIB + 512, { lazyRefcounts: true }, { backing: 600 * KIB }),
  qcow2('subclusters', 16 * KIB, 2 * MIB + 512, { extendedL2: true }),
  qcow2('subclusters over raw', 16 * KIB, 3 * MIB + 512, { extendedL2: true }, { backing: 3 * MIB }),
  qcow2('data file', 4 * KIB, 2 * MIB + 512, {}, { data: { raw: false } }),
  qcow2('data file over raw', 4 * KIB, 2 * MIB + 512, {}, { data: { raw: false }, backing: MIB + 512 }),
  qcow2('raw data file', 4 * KIB, 2 * MIB + 512, {}, { data: { raw: true } }),
  // Just below 4 MiB: growing needs a larger L1 table.
  qcow('alone', 4 * KIB, 4 * MIB - 5 * 512),
  qcow('512-byte clusters', 512, 256 * KIB - 5 * 512),
  qcow('over longer raw', 512, 4 * MIB - 5 * 512, { backing: 5 * MIB }),
];

/** The files of one image, in memory. */
export interface CrashFiles {
  /** Those that a power cut changes: the image, and its data file. */
  written: MemoryStorage[];
  base: MemoryStorage | undefined;
}

export function makeFiles({ image, size, backing, data }: CrashImage): CrashFiles {
  const dataStorage = data === undefined ? undefined : MemoryStorage.create(CAPACITY, DATA_NAME);
  const spec: ImageSpec = { ...image, size };
  if (backing !== undefined) spec.backing = { name: BASE_NAME, format: 'raw' };
  if (data !== undefined) spec.dataFile = { name: DATA_NAME, raw: data.raw };
  const top = createInMemory(spec, CAPACITY, dataStorage);
  let base: MemoryStorage | undefined;
  if (backing !== undefined) {
    base = createInMemory({ format: 'raw', size: backing }, backing);
    base.write(0, patternBytes(0, backing, 77), 0, backing, 'data-write');
  }
  return { written: dataStorage === undefined ? [top] : [top, dataStorage], base };
}

/** Files of the same names that hold nothing yet: `load` fills them. */
export function emptyFiles({ written, base }: CrashFiles): CrashFiles {
  return { written: written.map(({ path }) => MemoryStorage.create(CAPACITY, path)), base };
}

export function load(files: CrashFiles, states: readonly FileState[]): void {
  files.written.forEach((storage, index) => {
    const { bytes, length } = states[index];
    // Every byte up to the end is written: what the file held before need not be cleared first.
    storage.truncate(length, 'create');
    storage.write(0, bytes, 0, length, 'create');
  });
}

export function statesOf(files: CrashFiles): FileState[] {
  return files.written.map((storage) => {
    const state = new FileState(CAPACITY);
    state.length = storage.size();
    storage.read(0, state.bytes, 0, state.length);
    return state;
  });
}

/** @param log gets what is changed */
export function openFiles(files: CrashFiles, log?: RecordedOperation[]): OpenedChain {
  const [top, data] = files.written;
  const layers = files.base === undefined ? [top] : [top, files.base];
  const wrap = (below: Storage) => new RecordingStorage(below, log, below.path === DATA_NAME ? 1 : 0);
  return openChainOf(layers, log === undefined ? { readOnly: true, data } : { wrap, data });
}
