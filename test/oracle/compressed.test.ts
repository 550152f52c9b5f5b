/** Compressed clusters that we write, beside QEMU: it finds nothing wrong, reads the same, and they take as little room as its own. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { deleteSnapshot, revertToSnapshot, takeSnapshot } from '../../src/block/snapshots';
import { BlockError } from '../../src/errors';
import { KIB, MIB } from '../../src/units';
import { createImage, type ImageSpec, open } from '../helpers/images';
import { Random, seedOf, squeezableBytes } from '../helpers/random';
import { io, isSound, readAll, sameBytes, theirBytes, write } from './qcow2-disk';
import { make, oracleTest, qemuImg } from './qemu';

const SIZE = 3 * MIB + 5 * 512;

const qcow2 = (clusterSize: number, more: Partial<ImageSpec> = {}) =>
  ({ ...more, format: 'qcow2', clusterSize }) as const;

const LAYOUTS: { name: string; spec: Omit<ImageSpec, 'size'>; options: string }[] = [
  { name: '512 bytes', spec: qcow2(512), options: 'cluster_size=512' },
  { name: '4 KiB', spec: qcow2(4 * KIB), options: 'cluster_size=4k' },
  { name: '64 KiB', spec: qcow2(64 * KIB), options: 'cluster_size=64k' },
  { name: '2 MiB', spec: qcow2(2 * MIB), options: 'cluster_size=2M' },
  {
    name: '64 KiB, zstd',
    spec: qcow2(64 * KIB, { compressionType: 'zstd' }),
    options: 'cluster_size=64k,compression_type=zstd',
  },
  {
    name: '64 KiB, subclusters, zstd',
    spec: qcow2(64 * KIB, { extendedL2: true, compressionType: 'zstd' }),
    options: 'cluster_size=64k,extended_l2=on,compression_type=zstd',
  },
  { name: 'version 2', spec: qcow2(64 * KIB, { version: 2 }), options: 'cluster_size=64k,compat=0.10' },
  {
    name: 'counts of 1 bit',
    spec: qcow2(4 * KIB, { refcountBits: 1 }),
    options: 'cluster_size=4k,refcount_bits=1',
  },
];

/** Writes the whole disk, in pieces of several clusters. */
function fill(file: string, disk: Uint8Array): void {
  const image = open(file);
  const { node } = image;
  const piece = Math.max(MIB, node.clusterSize);
  for (let at = 0; at < disk.length; at += piece) {
    node.write(at, disk, at, Math.min(piece, disk.length - at), { compressed: true });
  }
  image.close();
}

function compressedClusters(directory: string, file: string): number {
  return JSON.parse(qemuImg(directory, ['check', '--output=json', file]).stdout)['compressed-clusters'] ?? 0;
}

for (const { name, spec, options } of LAYOUTS) {
  oracleTest(`qcow2, ${name}: QEMU reads what we compressed, and both write over it`, (t, directory) => {
    const file = path.join(directory, 'a');
    const random = new Random(seedOf(t, 7000));
    const disk = Buffer.from(squeezableBytes(0, SIZE, 3));
    fs.writeFileSync(path.join(directory, 'plain'), disk);
    createImage(file, { ...spec, size: SIZE });
    fill(file, disk);
    sameBytes(t, readAll(file), disk);
    sameBytes(t, theirBytes(directory, 'a'), disk);
    isSound(t, directory, 'a', 'filled');
    const compressed = compressedClusters(directory, 'a');
    t.true(compressed > 0, 'something is compressed');
    make(directory, 'convert', '-c', '-f', 'raw', '-O', 'qcow2', '-o', options, 'plain', 'theirs');
    const [ours, theirs] = ['a', 'theirs'].map((image) => fs.statSync(path.join(directory, image)).size);
    // With counts of one bit no two streams share a cluster in either.
    t.true(ours <= theirs * 1.1 + 256 * KIB, `${ours} bytes, QEMU's image has ${theirs}`);

    // Again over what is there, plain writes in between, then QEMU.
    fill(file, disk);
    isSound(t, directory, 'a', 'compressed twice');
    write(t, file, disk, random, 30);
    isSound(t, directory, 'a', 'written over');
    sameBytes(t, theirBytes(directory, 'a'), disk);
    io(directory, 'a', 'write -P 9 3000 200000', 'write -z 1M 300k');
    disk.fill(9, 3000, 203000);
    disk.fill(0, MIB, MIB + 300 * KIB);
    sameBytes(t, readAll(file), disk);
    isSound(t, directory, 'a', 'written over by QEMU');
  });
}

oracleTest('snapshots share compressed clusters, and keep them', (t, directory) => {
  for (const spec of [qcow2(4 * KIB), qcow2(64 * KIB, { extendedL2: true, compressionType: 'zstd' })]) {
    const file = path.join(directory, 'a');
    const first = Buffer.from(squeezableBytes(0, SIZE, 3));
    createImage(file, { ...spec, size: SIZE });
    fill(file, first);
    const image = open(file);
    const { node } = image;
    const { id } = takeSnapshot(node, 'first');
    const second = Buffer.from(first);
    second.set(squeezableBytes(MIB, 2 * MIB, 8), MIB);
    node.write(MIB, second, MIB, 2 * MIB, { compressed: true });
    takeSnapshot(node, 'second');
    node.write(0, Buffer.alloc(SIZE), 0, SIZE, { compressed: true });
    image.close();
    isSound(t, directory, 'a', 'with snapshots');
    sameBytes(t, theirBytes(directory, 'a'), Buffer.alloc(SIZE), 'the disk');
    sameBytes(t, theirBytes(directory, 'a', '-l', 'first'), first, 'first');
    sameBytes(t, theirBytes(directory, 'a', '-l', 'second'), second, 'second');
    const again = open(file);
    revertToSnapshot(again.node, id);
    again.node.write(0, second, 0, MIB, { compressed: true });
    deleteSnapshot(again.node, id);
    again.close();
    sameBytes(t, theirBytes(directory, 'a'), first, 'reverted');
    sameBytes(t, theirBytes(directory, 'a', '-l', 'second'), second, 'second, after the first is gone');
    isSound(t, directory, 'a', 'reverted');
    fs.rmSync(file);
  }
});

for (const clusterSize of [512, 4 * KIB, 64 * KIB]) {
  oracleTest(`qcow, ${clusterSize} bytes: QEMU reads what we compressed, and both write over it`, (t, directory) => {
    const file = path.join(directory, 'a');
    const disk = Buffer.from(squeezableBytes(0, SIZE, 5));
    createImage(file, { format: 'qcow', clusterSize, size: SIZE });
    fill(file, disk);
    const theirs = () => {
      make(directory, 'convert', '-f', 'qcow', '-O', 'raw', 'a', 'converted');
      return fs.readFileSync(path.join(directory, 'converted'));
    };
    sameBytes(t, theirs(), disk);
    t.true(fs.statSync(file).size < SIZE * 0.85, `${fs.statSync(file).size} bytes`);
    write(t, file, disk, new Random(seedOf(t, 7100)), 30);
    sameBytes(t, theirs(), disk);
    sameBytes(t, readAll(file), disk);
  });
}

oracleTest('a disk with an external data file has nothing compressed', (t, directory) => {
  make(directory, 'create', '-q', '-f', 'qcow2', '-o', 'data_file=data', 'a', '1M');
  const image = open(path.join(directory, 'a'));
  const error = t.throws(() => image.node.write(0, Buffer.alloc(64 * KIB), 0, 64 * KIB, { compressed: true }), {
    instanceOf: BlockError,
  });
  t.is(error?.code, 'UNSUPPORTED_FEATURE');
  image.close();
});
