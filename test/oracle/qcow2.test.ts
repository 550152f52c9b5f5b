/** qcow2 beside QEMU: compressed clusters, snapshots, growth, bitmaps, the dirty bit, data files, what info shows. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import type { OpenImage } from '../../src/block/open';
import { revertToSnapshot } from '../../src/block/snapshots';
import { ClusterLayer } from '../../src/cluster/cluster-layer';
import { BlockError } from '../../src/errors';
import { readQcow2Header } from '../../src/formats/qcow2/header';
import type { Qcow2Header } from '../../src/formats/qcow2/layout';
import { Qcow2SnapshotDriver } from '../../src/formats/qcow2/snapshot-driver';
import { readSnapshotTable } from '../../src/formats/qcow2/snapshot-table';
import { ImageState } from '../../src/shared/image-state';
import { TableCache } from '../../src/shared/table-cache';
import { attachStorage } from '../../src/storage/attach';
import { FileStorage } from '../../src/storage/file';
import { KIB, MIB } from '../../src/units';
import { createImage, open } from '../helpers/images';
import { patternBytes, Random, seedOf } from '../helpers/random';
import { io, isSound, OPERATIONS, readAll, SIZE, sameBytes, theirBytes, write } from './qcow2-disk';
import { make, oracleTest, qemuImg, run, sameAnswer } from './qemu';

/** Text, so that it becomes smaller. */
function compressibleBytes(length: number): Buffer {
  const bytes = Buffer.alloc(length);
  for (let at = 0; at + 32 < length; at += 32) bytes.write(`line ${at} of ${at % 977}\n`, at);
  bytes.fill(0, length >> 2, length >> 1);
  return bytes;
}

for (const options of [
  'cluster_size=512',
  'cluster_size=4k',
  'cluster_size=64k',
  'cluster_size=2M',
  'cluster_size=64k,compression_type=zstd',
  'cluster_size=2M,compression_type=zstd',
  'cluster_size=64k,extended_l2=on',
  'cluster_size=64k,compat=0.10',
]) {
  oracleTest(`compressed clusters are read, and written over: ${options}`, (t, directory) => {
    const disk = compressibleBytes(SIZE);
    fs.writeFileSync(path.join(directory, 'plain'), disk);
    make(directory, 'convert', '-c', '-f', 'raw', '-O', 'qcow2', '-o', options, 'plain', 'a');
    const file = path.join(directory, 'a');
    sameBytes(t, readAll(file), disk);
    write(t, file, disk, new Random(seedOf(t, 4000)), OPERATIONS / 2);
    sameBytes(t, theirBytes(directory, 'a'), disk);
    isSound(t, directory, 'a', options);
  });
}

for (const type of ['zlib', 'zstd']) {
  oracleTest(`a damaged ${type} stream fails its cluster and no other`, (t, directory) => {
    const disk = compressibleBytes(4 * MIB);
    fs.writeFileSync(path.join(directory, 'plain'), disk);
    make(directory, 'convert', '-c', '-O', 'qcow2', '-o', `compression_type=${type}`, 'plain', 'a');
    const file = path.join(directory, 'a');
    const clusters = disk.length / (64 * KIB);
    let damaged = 0;
    // Where the clusters lie nobody says; so the bytes are broken one place after the other.
    const whole = fs.readFileSync(file);
    for (let at = 0x50000 + 700; at < whole.length - 2000; at += Math.floor(whole.length / 12)) {
      const broken = Buffer.from(whole);
      broken.fill(0xff, at, at + 40);
      fs.writeFileSync(file, broken);
      const image = open(file, { readOnly: true });
      let bad = 0;
      for (let cluster = 0; cluster < clusters; cluster++) {
        const bytes = Buffer.alloc(64 * KIB);
        try {
          image.node.read(cluster * 64 * KIB, bytes, 0, bytes.length);
        } catch (error) {
          t.true(error instanceof BlockError && error.code === 'CORRUPT_IMAGE', String(error));
          bad++;
          continue;
        }
        // zlib has no checksum here: a damaged stream may also make other bytes, as many as it should.
        if (Buffer.compare(bytes, disk.subarray(cluster * 64 * KIB, (cluster + 1) * 64 * KIB)) !== 0) bad++;
      }
      image.close();
      t.true(bad <= 2, `${bad} clusters`);
      damaged += bad;
    }
    t.true(damaged >= 5, `${damaged} damaged clusters`);
  });
}

/** A snapshot as our driver of it reads. */
function snapshotBytes(file: string, index: number): Buffer {
  const image = open(file, { readOnly: true });
  try {
    const { layers, cache } = image.describe();
    const { storage: descriptor, header, state, imageId } = layers[0];
    const storage = attachStorage(descriptor);
    const qcow2 = header as Qcow2Header;
    const snapshot = readSnapshotTable(storage, qcow2)[index];
    const tables = new TableCache(cache);
    const shared = new ImageState(state, 1);
    const driver = new Qcow2SnapshotDriver(qcow2, snapshot, storage, storage, shared, tables, imageId);
    const bytes = Buffer.alloc(snapshot.virtualSize);
    new ClusterLayer(driver, tables, imageId, undefined).read(0, bytes, 0, bytes.length);
    return bytes;
  } finally {
    image.close();
  }
}

for (const options of [
  'cluster_size=64k',
  'cluster_size=512,refcount_bits=4',
  'cluster_size=4k,compat=0.10',
  'cluster_size=16k,extended_l2=on',
]) {
  oracleTest(`our writes change nothing that a snapshot shows: ${options}`, (t, directory) => {
    const random = new Random(seedOf(t, 5000));
    const file = path.join(directory, 'a');
    make(directory, 'create', '-q', '-f', 'qcow2', '-o', options, 'a', String(SIZE));
    io(directory, 'a', 'write -P 7 3000 400000', 'write -P 8 2M 1M');
    const disk = theirBytes(directory, 'a');
    const taken: Buffer[] = [];
    for (let i = 0; i < 3; i++) {
      make(directory, 'snapshot', '-c', `s${i}`, 'a');
      taken.push(Buffer.from(disk));
      write(t, file, disk, random, OPERATIONS / 3);
      isSound(t, directory, 'a', `after snapshot ${i}`);
    }
    sameBytes(t, theirBytes(directory, 'a'), disk, 'the live disk');
    for (const [i, bytes] of taken.entries()) sameBytes(t, snapshotBytes(file, i), bytes, `our reading of s${i}`);
    for (const [i, bytes] of taken.entries()) sameBytes(t, theirBytes(directory, 'a', '-l', `s${i}`), bytes, `s${i}`);
    // What only a snapshot held goes with it; what the disk shares with none is writable in place again.
    make(directory, 'snapshot', '-d', 's1', 'a');
    write(t, file, disk, random, OPERATIONS / 3);
    sameBytes(t, theirBytes(directory, 'a', '-l', 's0'), taken[0]);
    sameBytes(t, theirBytes(directory, 'a', '-l', 's2'), taken[2]);
    sameBytes(t, theirBytes(directory, 'a'), disk);
    isSound(t, directory, 'a', 'at the end');
  });
}

oracleTest('the disk grows past its L1 table, and past its refcount table', (t, directory) => {
  for (const options of ['cluster_size=512', 'cluster_size=512,refcount_bits=64', 'cluster_size=64k']) {
    const file = path.join(directory, 'a');
    make(directory, 'create', '-q', '-f', 'qcow2', '-o', options, 'a', String(100 * KIB));
    const image = open(file);
    let disk = patternBytes(0, 100 * KIB, 1);
    image.node.write(0, disk, 0, disk.length);
    for (const size of [300 * KIB, 301 * KIB, 4 * MIB, 40 * MIB]) {
      image.node.resize(size);
      const larger = new Uint8Array(size);
      larger.set(disk);
      disk = larger;
      const from = size - 50 * KIB;
      const bytes = patternBytes(from, 50 * KIB, 2);
      image.node.write(from, bytes, 0, bytes.length);
      disk.set(bytes, from);
    }
    image.close();
    sameBytes(t, theirBytes(directory, 'a'), Buffer.from(disk), options);
    isSound(t, directory, 'a', options);
  }
});

oracleTest('bitmaps: those that should record our writes are in use afterwards, the others stay', (t, directory) => {
  const file = path.join(directory, 'a');
  make(directory, 'create', '-q', '-f', 'qcow2', 'a', '4M');
  make(directory, 'bitmap', '--add', 'a', 'on');
  make(directory, 'bitmap', '--add', '--disable', 'a', 'off');
  const flags = () => {
    const info = JSON.parse(qemuImg(directory, ['info', '--output=json', 'a']).stdout);
    const bitmaps: { name: string; flags: string[] }[] = info['format-specific'].data.bitmaps;
    return bitmaps.map((bitmap) => `${bitmap.name}: ${bitmap.flags.join(' ')}`);
  };
  t.deepEqual(flags(), ['on: auto', 'off: ']);
  readAll(file);
  t.deepEqual(flags(), ['on: auto', 'off: '], 'reading changes nothing');
  const image = open(file);
  image.node.write(0, Buffer.alloc(1000, 1), 0, 1000);
  image.close();
  t.deepEqual(flags(), ['on: in-use auto', 'off: ']);
  isSound(t, directory, 'a', 'with bitmaps');
});

oracleTest('a disk with bitmaps that takes another size still opens in QEMU', (t, directory) => {
  const file = path.join(directory, 'a');
  // A table entry of a bitmap covers 512 * 8 * 64 KiB: 256 MiB.
  make(directory, 'create', '-q', '-f', 'qcow2', '-o', 'cluster_size=512', 'a', '200M');
  make(directory, 'bitmap', '--add', '--disable', 'a', 'off');
  make(directory, 'snapshot', '-c', 'small', 'a');
  const flags = () => {
    const { code, stdout, stderr } = qemuImg(directory, ['info', '--output=json', 'a']);
    if (code !== 0) return stderr;
    return JSON.parse(stdout)['format-specific'].data.bitmaps[0].flags;
  };
  const withNode = (change: (node: OpenImage['node']) => void) => {
    const image = open(file);
    change(image.node);
    image.close();
    isSound(t, directory, 'a', 'after a change of size');
  };
  withNode((node) => node.resize(201 * MIB));
  t.deepEqual(flags(), [], 'it fits, and is as good as before');
  withNode((node) => node.resize(300 * MIB));
  t.deepEqual(flags(), ['in-use'], 'nobody may believe it any more');
  make(directory, 'bitmap', '--remove', 'a', 'off');
  make(directory, 'bitmap', '--add', '--disable', 'a', 'off');
  withNode((node) => revertToSnapshot(node, '1'));
  t.deepEqual(flags(), ['in-use'], 'smaller');
});

oracleTest('an image that QEMU left dirty is repaired before it is written', (t, directory) => {
  const file = path.join(directory, 'a');
  make(directory, 'create', '-q', '-f', 'qcow2', '-o', 'lazy_refcounts=on,cluster_size=4k', 'a', '4M');
  run(directory, 'qemu-io', ['-c', 'write -P 3 0 1M', '-c', 'flush', '-c', 'abort', 'a']);
  const header = () => {
    const storage = FileStorage.open(file, { readOnly: true });
    try {
      return readQcow2Header(storage);
    } finally {
      storage.close();
    }
  };
  t.true(header().dirty);
  const before = readAll(file);
  t.true(header().dirty, 'reading changes nothing');
  t.is(before[MIB - 1], 3);
  const image = open(file);
  image.node.write(2 * MIB, Buffer.alloc(MIB, 5), 0, MIB);
  image.close();
  t.false(header().dirty);
  isSound(t, directory, 'a', 'repaired');
  before.fill(5, 2 * MIB, 3 * MIB);
  sameBytes(t, theirBytes(directory, 'a'), before);
});

oracleTest('imagefs info says what qemu-img info says, with snapshots and bitmaps', (t, directory) => {
  make(directory, 'create', '-q', '-f', 'qcow2', '-o', 'extended_l2=on,compression_type=zstd', 'a', '64M');
  make(directory, 'bitmap', '--add', 'a', 'b0');
  make(directory, 'snapshot', '-c', 'a name that is longer than its column', 'a');
  make(directory, 'snapshot', '-c', 'two', 'a');
  make(directory, 'create', '-q', '-f', 'qcow2', '-b', 'a', '-F', 'qcow2', 'b');
  make(directory, 'create', '-q', '-f', 'qcow2', '-o', 'compat=0.10', 'c', '1M');
  make(directory, 'create', '-q', '-f', 'qcow2', '-o', 'data_file=d,data_file_raw=on,lazy_refcounts=on', 'e', '1M');
  for (const file of ['a', 'b', 'c', 'e']) {
    for (const output of ['human', 'json']) sameAnswer(t, directory, ['info', `--output=${output}`, file]);
  }
});

oracleTest('a data file outside of the directory needs the gate open', (t, directory) => {
  fs.mkdirSync(path.join(directory, 'in'));
  make(directory, 'create', '-q', '-f', 'qcow2', '-o', `data_file=${directory}/data`, 'in/a', '1M');
  const file = path.join(directory, 'in', 'a');
  const error = t.throws(() => open(file, { backing: 'directory' }), { instanceOf: BlockError });
  t.is(error?.code, 'DENIED');
  open(file).close();
  fs.rmSync(path.join(directory, 'data'));
  t.is(t.throws(() => open(file), { instanceOf: BlockError })?.code, 'NOT_FOUND');
});

oracleTest('create and open: both formats by name and by probe', (t, directory) => {
  const file = path.join(directory, 'a');
  createImage(file, { format: 'qcow2', size: MIB });
  for (const format of [undefined, 'qcow2']) {
    const image = open(file, format === undefined ? {} : { format });
    t.is(image.node.format, 'qcow2');
    image.close();
  }
  t.is(t.throws(() => open(file, { format: 'qed' }), { instanceOf: BlockError })?.code, 'INVALID_FORMAT');
});
