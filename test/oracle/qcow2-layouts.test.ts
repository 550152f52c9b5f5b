/** qcow2 images of every layout that QEMU made, read and written by us, and the other way round: both see the same disk, and no error. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import type { CreateOptions } from '../../src/formats/format';
import { KIB, MIB } from '../../src/units';
import { patternBytes, Random, seedOf } from '../helpers/random';
import { io, isSound, OPERATIONS, readAll, SIZE, sameBytes, theirBytes, write } from './qcow2-disk';
import { imagefs, make, oracleTest } from './qemu';

/** Options of `create` in both languages, for images of which every part of the layout differs. */
const LAYOUTS: { qemu: string; ours: Partial<CreateOptions>; backing?: boolean; dataFile?: 'plain' | 'raw' }[] = [
  { qemu: 'cluster_size=512', ours: { clusterSize: 512 } },
  { qemu: 'cluster_size=1k,compat=0.10', ours: { clusterSize: KIB, version: 2 }, backing: true },
  { qemu: 'cluster_size=4k,refcount_bits=1', ours: { clusterSize: 4 * KIB, refcountBits: 1 } },
  { qemu: 'cluster_size=512,refcount_bits=2', ours: { clusterSize: 512, refcountBits: 2 } },
  { qemu: 'cluster_size=2k,refcount_bits=4', ours: { clusterSize: 2 * KIB, refcountBits: 4 }, backing: true },
  { qemu: 'cluster_size=8k,refcount_bits=8', ours: { clusterSize: 8 * KIB, refcountBits: 8 } },
  { qemu: 'cluster_size=512,refcount_bits=32', ours: { clusterSize: 512, refcountBits: 32 } },
  { qemu: 'cluster_size=512,refcount_bits=64', ours: { clusterSize: 512, refcountBits: 64 } },
  { qemu: 'cluster_size=64k', ours: {}, backing: true },
  { qemu: 'cluster_size=64k,compat=0.10', ours: { version: 2 } },
  { qemu: 'cluster_size=64k,lazy_refcounts=on', ours: { lazyRefcounts: true } },
  { qemu: 'cluster_size=2M', ours: { clusterSize: 2 * MIB }, backing: true },
  { qemu: 'cluster_size=16k,extended_l2=on', ours: { clusterSize: 16 * KIB, extendedL2: true }, backing: true },
  { qemu: 'cluster_size=64k,extended_l2=on', ours: { extendedL2: true } },
  {
    qemu: 'cluster_size=64k,extended_l2=on,compression_type=zstd',
    ours: { extendedL2: true, compressionType: 'zstd' },
  },
  { qemu: 'cluster_size=4k', ours: { clusterSize: 4 * KIB }, dataFile: 'plain', backing: true },
  { qemu: 'cluster_size=64k', ours: {}, dataFile: 'raw' },
  { qemu: 'cluster_size=16k,extended_l2=on', ours: { clusterSize: 16 * KIB, extendedL2: true }, dataFile: 'plain' },
];

function titleOf({ qemu, backing, dataFile }: (typeof LAYOUTS)[number]): string {
  return `${qemu}${dataFile ? `, ${dataFile} data file` : ''}${backing ? ', backing file' : ''}`;
}

/** Fills a base image; some of it is never written. */
function makeBase(directory: string): void {
  const bytes = Buffer.alloc(SIZE - MIB);
  for (const [offset, length] of [
    [0, 300_000],
    [MIB + 1000, 2 * MIB],
    [4 * MIB, 70_000],
  ]) {
    bytes.set(patternBytes(offset, length, 99), offset);
  }
  fs.writeFileSync(path.join(directory, 'base.raw'), bytes);
}

function qemuOptions(layout: (typeof LAYOUTS)[number]): string {
  const data =
    layout.dataFile === undefined ? '' : `,data_file=data${layout.dataFile === 'raw' ? ',data_file_raw=on' : ''}`;
  return `${layout.qemu}${data}${layout.backing ? ',backing_file=base.raw,backing_fmt=raw' : ''}`;
}

for (const [index, layout] of LAYOUTS.entries()) {
  oracleTest(`their image, read and written by us: ${titleOf(layout)}`, (t, directory) => {
    const random = new Random(seedOf(t, 3000 + index));
    makeBase(directory);
    make(directory, 'create', '-q', '-f', 'qcow2', '-o', qemuOptions(layout), 'a', String(SIZE));
    io(directory, 'a', 'write -P 7 3000 100000', 'write -P 8 2M 70k', 'write -z 1500k 300k', 'discard 2080k 100k');
    const file = path.join(directory, 'a');
    const disk = theirBytes(directory, 'a');
    sameBytes(t, readAll(file), disk, 'first read');
    write(t, file, disk, random, OPERATIONS);
    sameBytes(t, theirBytes(directory, 'a'), disk, 'they read what we wrote');
    isSound(t, directory, 'a', 'after our writes');
    if (layout.dataFile === 'raw') sameBytes(t, fs.readFileSync(path.join(directory, 'data')), disk, 'raw data file');
    io(directory, 'a', 'write -P 9 100k 700k', 'write -z 3M 1M', 'write -P 10 5M 1000');
    sameBytes(t, readAll(file), theirBytes(directory, 'a'), 'we read what they wrote');
    isSound(t, directory, 'a', 'after theirs');
  });

  oracleTest(`our image, read and written by them: ${titleOf(layout)}`, (t, directory) => {
    const random = new Random(seedOf(t, 3500 + index));
    makeBase(directory);
    const file = path.join(directory, 'a');
    const created = imagefs(directory, ['create', '-f', 'qcow2', '-o', qemuOptions(layout), 'a', String(SIZE)]);
    t.is(created.code, 0, created.stderr);
    const disk = Buffer.alloc(SIZE);
    if (layout.backing) fs.readFileSync(path.join(directory, 'base.raw')).copy(disk);
    write(t, file, disk, random, OPERATIONS);
    sameBytes(t, theirBytes(directory, 'a'), disk, 'they read what we wrote');
    io(directory, 'a', 'write -P 9 100k 700k', 'write -z 3M 1M', 'discard 5M 300k', 'write -P 10 5M 1000');
    const now = theirBytes(directory, 'a');
    sameBytes(t, readAll(file), now, 'we read what they wrote');
    write(t, file, now, random, OPERATIONS / 4);
    sameBytes(t, theirBytes(directory, 'a'), now);
    isSound(t, directory, 'a', 'at the end');
  });
}
