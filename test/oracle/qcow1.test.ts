/** qcow (version 1) images that QEMU made, read and written by us, and the other way round: both must see the same disk. */
import { execFileSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import type { ExecutionContext } from 'ava';
import { main } from '../../src/cli/main';
import { GIB, KIB, MIB } from '../../src/units';
import { checkFile, open } from '../helpers/images';
import { LONG, patternBytes, Random, seedOf } from '../helpers/random';
import { imagefs, make, oracleTest, qemuImg, sameAnswer } from './qemu';

/** Two L2 tables. */
const SIZE = 2 * MIB + 512 * KIB + 3 * 512;
const OPERATIONS = LONG ? 3000 : 150;

async function createBoth(directory: string, words: string[], tail: string[]): Promise<[Buffer, Buffer]> {
  make(directory, 'create', '-q', '-f', 'qcow', ...words, 'theirs.qcow', ...tail);
  const code = await main(['create', '-q', '-f', 'qcow', ...words, path.join(directory, 'ours.qcow'), ...tail]);
  if (code !== 0) throw new Error(`imagefs create ${words.join(' ')}: exit code ${code}`);
  return [fs.readFileSync(path.join(directory, 'theirs.qcow')), fs.readFileSync(path.join(directory, 'ours.qcow'))];
}

const CREATED: [words: string[], tail: string[]][] = [
  ...['1', '511', '512', '513', '1000000', '1.5M', '2M', '129M', '10G', '1T'].map((size): [string[], string[]] => [
    [],
    [size],
  ]),
  [['-b', 'base.raw', '-F', 'raw'], []],
  [['-b', 'base.raw', '-F', 'raw'], ['5M']],
  [['-b', 'base.raw', '-F', 'raw'], ['1T']],
  [['-b', 'base.qed', '-F', 'qed'], []],
  [['-b', './base.qed', '-F', 'qed'], ['100M']],
  [['-o', 'backing_file=base.qed,backing_fmt=qed'], []],
  [['-b', 'bäse.raw', '-F', 'raw'], []],
  [['-u', '-b', 'x', '-F', 'qcow2'], ['1M']],
  [['-u', '-b', `${'x'.repeat(1018)}.qcow`, '-F', 'qcow'], ['1M']],
  [['-o', 'size=2M'], []],
  [['-o', 'preallocation=off'], ['1M']],
  [['-o', 'encryption=off'], ['1M']],
];

oracleTest('imagefs create -f qcow writes the bytes of qemu-img create', async (t, directory) => {
  make(directory, 'create', '-q', '-f', 'raw', 'base.raw', '3M');
  fs.copyFileSync(path.join(directory, 'base.raw'), path.join(directory, 'bäse.raw'));
  make(directory, 'create', '-q', '-f', 'qed', 'base.qed', '2M');
  for (const [words, tail] of CREATED) {
    const [theirs, ours] = await createBoth(directory, words, tail);
    t.true(ours.equals(theirs), [...words, ...tail].join(' '));
  }
  t.is(CREATED.length, 22);
});

const REFUSED: string[][] = [
  ['-f', 'qcow', 'x', '0'],
  ['-f', 'qcow', 'x', '8E'],
  ['-f', 'qcow', 'x'],
  ['-f', 'qcow', '-o', 'cluster_size=4k', 'x', '1M'],
  ['-f', 'qcow', '-o', 'encryption=on', 'x', '1M'],
  ['-f', 'qcow', '-o', 'preallocation=metadata', 'x', '1M'],
  ['-f', 'qcow', '-b', 'missing.raw', '-F', 'raw', 'x', '1M'],
];

oracleTest('imagefs create -f qcow prints what qemu-img prints, and refuses what it refuses', (t, directory) => {
  make(directory, 'create', '-q', '-f', 'raw', 'base.raw', '3M');
  sameAnswer(t, directory, ['create', '-f', 'qcow', 'x', '513']);
  sameAnswer(t, directory, ['create', '-f', 'qcow', '-o', 'encryption=off', 'x', '1M']);
  sameAnswer(t, directory, ['create', '-f', 'qcow', '-b', 'base.raw', '-F', 'raw', 'x']);
  for (const words of REFUSED) {
    const title = words.join(' ');
    t.is(qemuImg(directory, ['create', ...words]).code, 1, title);
    fs.rmSync(path.join(directory, 'x'), { force: true });
    const ours = imagefs(directory, ['create', ...words]);
    t.is(ours.code, 1, title);
    t.regex(ours.stderr, /^imagefs: [^\n]+\n$/, title);
    t.false(fs.existsSync(path.join(directory, 'x')), title);
  }
  // QEMU makes these two, and cannot open them.
  t.is(imagefs(directory, ['create', '-f', 'qcow', 'x', '600T']).code, 1);
  t.is(imagefs(directory, ['create', '-u', '-f', 'qcow', '-b', 'x'.repeat(1024), '-F', 'raw', 'x', '1M']).code, 1);
});

/** Bytes of which every cluster compresses differently, some not at all, with holes. */
function mixedBytes(seed: number): Buffer {
  const random = new Random(seed);
  const bytes = Buffer.alloc(SIZE);
  for (let at = 0; at < SIZE - 8 * KIB; at += 8 * KIB) {
    const kind = random.below(4);
    if (kind === 1) bytes.fill(random.between(1, 255), at, at + random.between(1, 8 * KIB));
    if (kind === 2) bytes.write(`line ${at}\n`.repeat(random.between(1, 500)), at);
    if (kind === 3) for (let i = at; i < at + 8 * KIB; i++) bytes[i] = random.below(256);
  }
  return bytes;
}

/** Runs of all content: fresh, plain, compressed, over a backing file. */
const IMAGES: Record<string, (directory: string) => void> = {
  'fresh.qcow': (d) => make(d, 'create', '-f', 'qcow', 'fresh.qcow', String(SIZE)),
  'plain.qcow': (d) => make(d, 'convert', '-f', 'raw', '-O', 'qcow', 'disk.raw', 'plain.qcow'),
  'compressed.qcow': (d) => {
    // QEMU 7.2 writes all of it, and then fails without a word.
    qemuImg(d, ['convert', '-c', '-f', 'raw', '-O', 'qcow', 'disk.raw', 'compressed.qcow']);
    make(d, 'compare', 'disk.raw', 'compressed.qcow');
  },
  'over-raw.qcow': (d) => make(d, 'create', '-f', 'qcow', '-b', 'disk.raw', '-F', 'raw', 'over-raw.qcow', '3M'),
  'over-compressed.qcow': (d) => {
    make(d, 'create', '-f', 'qcow', '-b', 'compressed.qcow', '-F', 'qcow', 'over-compressed.qcow');
    io(d, 'qcow', 'over-compressed.qcow', 'write -P 6 3k 90k', 'write -P 7 2M 1k');
  },
  'over.qcow2': (d) => {
    make(d, 'create', '-f', 'qcow2', '-b', 'over-compressed.qcow', '-F', 'qcow', 'over.qcow2', '4M');
    io(d, 'qcow2', 'over.qcow2', 'write -z 1M 300k', 'write -P 8 2045k 10k');
  },
  'over-qcow2.qcow': (d) => {
    make(d, 'create', '-f', 'qcow', '-b', 'over.qcow2', '-F', 'qcow2', 'over-qcow2.qcow');
    io(d, 'qcow', 'over-qcow2.qcow', 'write -P 9 1100k 10k');
  },
  'over-qcow.qed': (d) => make(d, 'create', '-f', 'qed', '-b', 'over-qcow2.qcow', '-F', 'qcow', 'over-qcow.qed', '5M'),
};

function io(directory: string, format: string, file: string, ...commands: string[]): void {
  const words = commands.flatMap((command) => ['-c', command]);
  execFileSync('qemu-io', ['-f', format, ...words, file], { cwd: directory, stdio: ['ignore', 'ignore', 'pipe'] });
}

function makeAll(directory: string): void {
  fs.writeFileSync(path.join(directory, 'disk.raw'), mixedBytes(5));
  for (const build of Object.values(IMAGES)) build(directory);
}

function formatOf(file: string): string {
  return path.extname(file).slice(1);
}

/** The whole disk as we read it. */
function ourBytes(directory: string, file: string): Buffer {
  const image = open(path.join(directory, file), { readOnly: true });
  try {
    const bytes = Buffer.alloc(image.node.size());
    image.node.read(0, bytes, 0, bytes.length);
    return bytes;
  } finally {
    image.close();
  }
}

/** Equal for QEMU, and for us. */
function reads(t: ExecutionContext, directory: string, file: string, expected: Buffer, words = file): void {
  // Not `qemu-img compare`: it asks qcow for the status of each cluster, and takes ten times as long.
  t.is(Buffer.compare(theirBytes(directory, file), expected), 0, `${words}: QEMU`);
  t.is(Buffer.compare(ourBytes(directory, file), expected), 0, words);
}

function theirBytes(directory: string, file: string): Buffer {
  make(directory, 'convert', '-f', formatOf(file), '-O', 'raw', file, 'converted');
  return fs.readFileSync(path.join(directory, 'converted'));
}

oracleTest('info, map and check of qcow images answer as qemu-img does', (t, directory) => {
  makeAll(directory);
  for (const file of Object.keys(IMAGES).filter((name) => formatOf(name) === 'qcow')) {
    sameAnswer(t, directory, ['info', file]);
    sameAnswer(t, directory, ['info', '--output=json', file]);
    sameAnswer(t, directory, ['check', file]);
    t.is(imagefs(directory, ['check', file]).code, 63);
    const theirs = qemuImg(directory, ['map', '--output=json', file]);
    const ours = imagefs(directory, ['map', '--output=json', file]);
    // Newer ones than 7.2 say too which parts are compressed.
    const plain = (text: string) =>
      JSON.stringify(JSON.parse(text, (key, value) => (key === 'compressed' ? undefined : value)));
    t.is(plain(ours.stdout), plain(theirs.stdout), file);
  }
  sameAnswer(t, directory, ['info', '--backing-chain', 'over-qcow.qed']);
});

oracleTest('chains of raw, qcow, qcow2 and QED read as QEMU reads them', (t, directory) => {
  makeAll(directory);
  for (const file of Object.keys(IMAGES)) {
    t.is(Buffer.compare(ourBytes(directory, file), theirBytes(directory, file)), 0, file);
  }
  t.is(Object.keys(IMAGES).length, 8);
});

/** Random writes and zeroes in one place of the disk and the array, over our engine. */
function runOurs(directory: string, file: string, disk: Buffer, random: Random): void {
  const image = open(path.join(directory, file));
  try {
    for (let step = 0; step < OPERATIONS; step++) {
      const offset = random.below(disk.length);
      const length = Math.min(disk.length - offset, random.between(1, random.chance(0.5) ? 5000 : 100 * KIB));
      if (random.chance(0.7)) {
        const bytes = patternBytes(offset, length, step);
        image.node.write(offset, bytes, 0, length);
        disk.set(bytes, offset);
      } else {
        image.node.writeZeroes(offset, length);
        disk.fill(0, offset, offset + length);
      }
      if (random.chance(0.1)) image.node.flush();
    }
  } finally {
    image.close();
  }
}

function runTheirs(directory: string, file: string, disk: Buffer, random: Random): void {
  const commands: string[] = [];
  for (let step = 0; step < 30; step++) {
    const offset = random.below(disk.length / 512) * 512;
    const length = Math.min(disk.length - offset, 512 * random.between(1, 60));
    const value = random.chance(0.3) ? 0 : random.between(1, 255);
    commands.push(value === 0 ? `write -z ${offset} ${length}` : `write -P ${value} ${offset} ${length}`);
    disk.fill(value, offset, offset + length);
  }
  io(directory, formatOf(file), file, ...commands);
}

oracleTest('random programs by turns with qemu-io leave the same disk for both', (t, directory) => {
  const random = new Random(seedOf(t, 71));
  makeAll(directory);
  for (const file of ['fresh.qcow', 'plain.qcow', 'compressed.qcow', 'over-raw.qcow']) {
    const disk = theirBytes(directory, file);
    for (let round = 0; round < 2; round++) {
      runOurs(directory, file, disk, random);
      reads(t, directory, file, disk, `${file}, round ${round}, after our program`);
      runTheirs(directory, file, disk, random);
      reads(t, directory, file, disk, `${file}, round ${round}, after theirs`);
    }
    const { corruptions, messages } = checkFile(path.join(directory, file));
    t.is(corruptions, 0, `${file}: ${messages.join('; ')}`);
  }
});

oracleTest('an image of ours over qcow2, and grown, reads the same for QEMU', async (t, directory) => {
  const random = new Random(seedOf(t, 72));
  makeAll(directory);
  const tail = ['-b', 'over.qcow2', '-F', 'qcow2'];
  t.is(
    await main(['create', '-q', '-f', 'qcow', ...tail.slice(0, 2), ...tail.slice(2), path.join(directory, 'a.qcow')]),
    0,
  );
  const disk = theirBytes(directory, 'over.qcow2');
  runOurs(directory, 'a.qcow', disk, random);
  reads(t, directory, 'a.qcow', disk);

  // Past what its L1 table reaches: the table moves.
  const image = open(path.join(directory, 'a.qcow'));
  const larger = Buffer.concat([disk, Buffer.alloc(20 * MIB)]);
  try {
    image.node.resize(larger.length);
  } finally {
    image.close();
  }
  reads(t, directory, 'a.qcow', larger, 'grown');
  runOurs(directory, 'a.qcow', larger, random);
  runTheirs(directory, 'a.qcow', larger, random);
  reads(t, directory, 'a.qcow', larger, 'grown and written');
  t.is(checkFile(path.join(directory, 'a.qcow')).corruptions, 0);
});

oracleTest('a large disk with many slices of L1 table', (t, directory) => {
  make(directory, 'create', '-q', '-f', 'qcow', 'large.qcow', '1T');
  io(directory, 'qcow', 'large.qcow', 'write -P 3 1023G 8k');
  const image = open(path.join(directory, 'large.qcow'));
  try {
    const bytes = Buffer.alloc(4 * KIB);
    image.node.read(1023 * GIB + 4 * KIB, bytes, 0, bytes.length);
    t.true(bytes.every((byte) => byte === 3));
    image.node.write(700 * GIB - 100, Buffer.alloc(200, 5), 0, 200);
  } finally {
    image.close();
  }
  t.notThrows(() => io(directory, 'qcow', 'large.qcow', `read -P 5 ${700 * GIB - 100} 200`, 'read -P 3 1023G 8k'));
});

oracleTest('an image that is encrypted with AES is refused by name', (t, directory) => {
  const words = ['--object', 'secret,id=s,data=geheim', '-q', '-f', 'qcow'];
  make(directory, 'create', ...words, '-o', 'encrypt.format=aes,encrypt.key-secret=s', 'secret.qcow', '1M');
  for (const command of ['info', 'map']) {
    const ours = imagefs(directory, [command, 'secret.qcow']);
    t.is(ours.code, 1);
    t.regex(ours.stderr, /^imagefs: [^\n]*"secret\.qcow"[^\n]*AES[^\n]*\n$/);
  }
});
