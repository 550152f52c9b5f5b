import * as fs from 'node:fs';
import * as path from 'node:path';
import { main } from '../../src/cli/main';
import { imagefs, make, oracleTest, qemuImg, run, sameAnswer } from './qemu';

const MIB = 1024 * 1024;
const CLUSTER_SIZES = Array.from({ length: 13 }, (_, index) => 512 * 2 ** index);
const LONG = process.env.IMAGEFS_LONG === '1';
const REFCOUNT_BITS = LONG ? [1, 2, 4, 8, 16, 32, 64] : [1, 8, 64];

/** The image twice, and what the data files hold. */
async function createBoth(directory: string, words: string[], tail: string[]): Promise<void> {
  for (const name of ['theirs', 'ours']) fs.rmSync(path.join(directory, name), { force: true });
  make(directory, 'create', '-q', '-f', 'qcow2', ...words, 'theirs', ...tail);
  const code = await main(['create', '-q', '-f', 'qcow2', ...words, path.join(directory, 'ours'), ...tail]);
  if (code !== 0) throw new Error(`imagefs create ${words.join(' ')}: exit code ${code}`);
}

function sameBytes(directory: string): boolean {
  const [theirs, ours] = ['theirs', 'ours'].map((name) => fs.readFileSync(path.join(directory, name)));
  return theirs.equals(ours);
}

oracleTest(
  'imagefs create writes the bytes of qemu-img create for every cluster size and width',
  async (t, directory) => {
    let cases = 0;
    for (const size of CLUSTER_SIZES) {
      await createBoth(directory, ['-o', `cluster_size=${size}`], ['100M']);
      t.true(sameBytes(directory), `cluster_size=${size}`);
      cases++;
    }
    for (const bits of REFCOUNT_BITS) {
      // With small clusters and a large disk, refcount blocks come behind the L1 table.
      for (const [options, size] of [
        ['', '1G'],
        [',cluster_size=512', '1G'],
        [',cluster_size=1k,preallocation=metadata', '3M'],
      ]) {
        await createBoth(directory, ['-o', `refcount_bits=${bits}${options}`], [size]);
        t.true(sameBytes(directory), `refcount_bits=${bits}${options}`);
        cases++;
      }
    }
    t.is(cases, LONG ? 34 : 22);
  },
);

const SAME: [options: string, size: string, words?: string[]][] = [
  ['encryption=off', '1G'],
  ['size=0', ''],
  ['size=1', ''],
  ['size=513', ''],
  ['compat=1.1', '1000000'],
  ['compat=v3', '10T'],
  ['compat=0.10', '1G'],
  ['compat=v2', '1G'],
  ['compat=0.10,preallocation=metadata', '8M'],
  ['lazy_refcounts=on', '1G'],
  ['lazy_refcounts=yes,extended_l2=true', '1G'],
  ['extended_l2=on,cluster_size=16k', '1G'],
  ['extended_l2=on,preallocation=metadata', '10M'],
  ['compression_type=zstd', '1G'],
  ['compression_type=zlib', '1G'],
  ['preallocation=off', '1G'],
  ['preallocation=metadata', '20M'],
  ['preallocation=metadata,cluster_size=4k', '5M'],
  ['preallocation=metadata,cluster_size=2M', '10M'],
  ['data_file=data', '3M'],
  ['data_file=data,data_file_raw=on', '8M'],
  ['data_file=data,data_file_raw=on,extended_l2=on', '20M'],
  ['data_file=data,preallocation=falloc', '8M'],
  ['data_file=data,preallocation=full,data_file_raw=on', '8M'],
  ['cluster_size=64k', '', ['-b', 'base.qcow2', '-F', 'qcow2']],
  ['cluster_size=512', '', ['-b', 'base.raw', '-F', 'raw']],
  ['compat=0.10', '5M', ['-b', 'base.raw', '-F', 'raw']],
  ['data_file=data', '', ['-b', 'base.qcow2', '-F', 'qcow2']],
  ['preallocation=metadata,extended_l2=on', '', ['-b', 'base.raw', '-F', 'raw']],
  ['backing_file=ba,,se.raw,backing_fmt=raw', ''],
  ['cluster_size=4k', '1M', ['-u', '-b', `${'x'.repeat(1000)}.qcow2`, '-F', 'qcow2']],
];

oracleTest('imagefs create writes the bytes of qemu-img create for every option of qcow2', async (t, directory) => {
  make(directory, 'create', '-q', '-f', 'raw', 'base.raw', '3M');
  fs.copyFileSync(path.join(directory, 'base.raw'), path.join(directory, 'ba,se.raw'));
  make(directory, 'create', '-q', '-f', 'qcow2', 'base.qcow2', '2M');
  for (const [options, size, words = []] of SAME) {
    const data = path.join(directory, 'data');
    fs.rmSync(data, { force: true });
    make(directory, 'create', '-q', '-f', 'qcow2', ...words, '-o', options, 'theirs', ...(size === '' ? [] : [size]));
    const theirs = fs.existsSync(data) ? fs.statSync(data) : undefined;
    await createBoth(directory, [...words, '-o', options], size === '' ? [] : [size]);
    t.true(sameBytes(directory), `${options} ${size}`);
    if (theirs === undefined) continue;
    const ours = fs.statSync(data);
    t.is(ours.size, theirs.size, options);
    if (options.includes('preallocation')) t.is(ours.blocks, theirs.blocks, options);
    t.true(
      fs.readFileSync(data).every((byte) => byte === 0),
      options,
    );
  }
  t.is(SAME.length, 31);
});

/** Here QEMU moves its tables about while it writes: equal in everything that can be seen but where they lie. */
const ALIKE: [options: string, size: string][] = [
  ['preallocation=falloc', '30M'],
  ['preallocation=full', '30M'],
  ['preallocation=falloc,cluster_size=2M', '30M'],
  ['preallocation=full,cluster_size=4k', '10M'],
  ['preallocation=falloc,cluster_size=512', '3M'],
  ['preallocation=full,cluster_size=512,refcount_bits=1', '1M'],
  ['preallocation=metadata,cluster_size=512,refcount_bits=64', '20M'],
  ['preallocation=metadata,cluster_size=512', '12M'],
  ['preallocation=full,extended_l2=on', '10M'],
  ['cluster_size=512,refcount_bits=64', '10G'],
];

oracleTest(
  'imagefs create makes preallocated images that qemu-img finds clean and equal to its own',
  async (t, directory) => {
    for (const [options, size] of ALIKE) {
      await createBoth(directory, ['-o', options], [size]);
      const check = qemuImg(directory, ['check', '--output=json', 'ours']);
      t.is(check.code, 0, `${options} ${check.stdout}${check.stderr}`);
      const shares = ({ stdout }: { stdout: string }) => {
        const { 'allocated-clusters': allocated, 'fragmented-clusters': fragmented } = JSON.parse(stdout);
        return { allocated, fragmented };
      };
      t.deepEqual(shares(check), shares(qemuImg(directory, ['check', '--output=json', 'theirs'])), options);
      t.is(imagefs(directory, ['check', 'ours']).code, 0, options);
      t.is(imagefs(directory, ['check', 'theirs']).code, 0, options);
      t.is(qemuImg(directory, ['compare', 'theirs', 'ours']).code, 0, options);
      const [theirs, ours] = ['theirs', 'ours'].map((name) => fs.statSync(path.join(directory, name)));
      t.true(Math.abs(ours.size - theirs.size) < MIB, `${options}: size ${ours.size}, ${theirs.size}`);
      if (/falloc|full/.test(options)) {
        t.true(
          Math.abs(ours.blocks - theirs.blocks) * 512 < 3 * MIB,
          `${options}: blocks ${ours.blocks}, ${theirs.blocks}`,
        );
      }
      fs.rmSync(path.join(directory, 'ours'));
      fs.rmSync(path.join(directory, 'theirs'));
    }
    t.is(ALIKE.length, 10);
  },
);

oracleTest('imagefs create prints for qcow2 what qemu-img create prints', (t, directory) => {
  make(directory, 'create', '-q', '-f', 'raw', 'ba,se.raw', '1M');
  for (const words of [
    ['x', '513'],
    ['-o', 'cluster_size=128k,compat=1.1,lazy_refcounts=yes', 'x', '1G'],
    ['-o', 'compat=0.10', '-b', 'ba,se.raw', '-F', 'raw', 'x'],
    [
      '-o',
      'data_file=d,data_file_raw=on,preallocation=metadata,extended_l2=on,refcount_bits=64,compression_type=zstd',
      'x',
      '1M',
    ],
    ['-o', 'encryption=off', 'x', '1M'],
    ['-q', 'x', '1M'],
  ]) {
    sameAnswer(t, directory, ['create', '-f', 'qcow2', ...words]);
  }
});

oracleTest('imagefs create -o help lists the options of qcow2 in the words of qemu-img', (t, directory) => {
  const words = ['create', '-f', 'qcow2', '-o', 'help', 'x'];
  const theirs = new Set(qemuImg(directory, words).stdout.split('\n'));
  const ours = imagefs(directory, words).stdout.split('\n');
  t.is(ours.length, 14);
  for (const line of ours) t.true(theirs.has(line), line);
});

const REFUSED: string[][] = [
  ['-o', 'compat=0.11', 'x', '1M'],
  ['-o', 'compat=0.10,lazy_refcounts=on', 'x', '1M'],
  ['-o', 'compat=0.10,refcount_bits=8', 'x', '1M'],
  ['-o', 'compat=0.10,extended_l2=on', 'x', '1M'],
  ['-o', 'compat=0.10,data_file=d', 'x', '1M'],
  ['-o', 'compat=0.10,compression_type=zstd', 'x', '1M'],
  ['-o', 'refcount_bits=3', 'x', '1M'],
  ['-o', 'refcount_bits=128', 'x', '1M'],
  ['-o', 'refcount_bits=x', 'x', '1M'],
  ['-o', 'lazy_refcounts=maybe', 'x', '1M'],
  ['-o', 'cluster_size=256', 'x', '1M'],
  ['-o', 'cluster_size=4M', 'x', '1M'],
  ['-o', 'cluster_size=65537', 'x', '1M'],
  ['-o', 'cluster_size=4k,extended_l2=on', 'x', '1M'],
  ['-o', 'data_file_raw=on', 'x', '1M'],
  ['-o', 'data_file=x', 'x', '1M'],
  ['-o', 'data_file=d,data_file_raw=on', '-b', 'base.raw', '-F', 'raw', 'x'],
  ['-o', 'preallocation=metadata', '-b', 'base.raw', '-F', 'raw', 'x'],
  ['-o', 'preallocation=other', 'x', '1M'],
  ['-o', 'compression_type=other', 'x', '1M'],
  ['-o', 'cluster_size=512', 'x', '1T'],
  ['-o', 'cluster_size=512', '-u', '-b', 'x'.repeat(600), '-F', 'raw', 'x', '1M'],
  ['-u', '-b', 'x'.repeat(1024), '-F', 'raw', 'x', '1M'],
  ['-o', 'size=1M', 'x', '1M'],
  ['-o', 'table_size=4', 'x', '1M'],
];

oracleTest(
  'imagefs create refuses what qemu-img refuses for qcow2, in one line, and leaves no file',
  (t, directory) => {
    make(directory, 'create', '-q', '-f', 'raw', 'base.raw', '3M');
    for (const words of REFUSED) {
      const title = words.join(' ');
      t.is(qemuImg(directory, ['create', '-f', 'qcow2', ...words]).code, 1, title);
      for (const name of ['x', 'd']) fs.rmSync(path.join(directory, name), { force: true });
      const ours = imagefs(directory, ['create', '-f', 'qcow2', ...words]);
      t.is(ours.code, 1, title);
      t.regex(ours.stderr, /^imagefs: [^\n]+\n$/, title);
      t.false(fs.existsSync(path.join(directory, 'x')), title);
    }
    t.is(REFUSED.length, 25);
  },
);

oracleTest('imagefs create puts the data file beside the image, where opening looks for it', (t, directory) => {
  fs.mkdirSync(path.join(directory, 'sub'));
  t.is(imagefs(directory, ['create', '-q', '-f', 'qcow2', '-o', 'data_file=d', 'sub/x', '1M']).code, 0);
  t.is(fs.statSync(path.join(directory, 'sub', 'd')).size, MIB);
  t.is(imagefs(directory, ['map', 'sub/x']).code, 0);
  // QEMU itself looks for it in the working directory.
  t.is(qemuImg(path.join(directory, 'sub'), ['check', 'x']).code, 0);
});

oracleTest('imagefs map shows places that hold no data yet as qemu-img does', (t, directory) => {
  fs.writeFileSync(path.join(directory, 'base.raw'), Buffer.alloc(3_000_320, 7));
  const over = ['-b', 'base.raw', '-F', 'raw'];
  const cases: [name: string, words: string[], commands: string[]][] = [
    ['places taken in advance', ['-o', 'preallocation=metadata'], ['write 1M 10k', 'write -z 2M 128k']],
    ['and their subclusters', ['-o', 'preallocation=metadata,extended_l2=on'], ['write 1M 10k', 'write -z 2M 128k']],
    [
      'zeroes that keep their place',
      [],
      ['write 0 256k', 'write -z 64k 64k', 'write -zu 128k 64k', 'write -z 192k 64k'],
    ],
    [
      'a cluster used in part',
      ['-o', 'extended_l2=on'],
      ['write 70k 3k', 'write -z 100k 3k', 'write 1M 64k', 'discard 1M 8k'],
    ],
    [
      'over a short backing file',
      ['-o', 'extended_l2=on', ...over],
      ['write 70k 3k', 'write -z 100k 3k', 'write 5M 10k'],
    ],
  ];
  for (const [name, words, commands] of cases) {
    make(directory, 'create', '-q', '-f', 'qcow2', ...words, 'e', '8M');
    for (const command of commands) run(directory, 'qemu-io', ['-c', command, 'e']);
    const theirs = qemuImg(directory, ['map', '--output=json', 'e']).stdout;
    t.is(imagefs(directory, ['map', '--output=json', 'e']).stdout, theirs, name);
    sameAnswer(t, directory, ['map', 'e']);
  }
});

oracleTest(
  'imagefs create refuses a backing format alone and an image that is its own backing file',
  (t, directory) => {
    for (const words of [
      ['-F', 'raw'],
      ['-o', 'backing_fmt=raw'],
    ]) {
      const { code, stderr } = imagefs(directory, ['create', '-f', 'qcow2', ...words, 'a', '1M']);
      t.is(code, 1);
      t.regex(stderr, /Backing format cannot be used without backing file/);
      t.false(fs.existsSync(path.join(directory, 'a')));
    }
    make(directory, 'create', '-q', '-f', 'qcow2', 'a', '1M');
    const before = fs.readFileSync(path.join(directory, 'a'));
    const { code, stderr } = imagefs(directory, ['create', '-f', 'qcow2', '-u', '-b', 'a', '-F', 'qcow2', 'a', '2M']);
    t.is(code, 1);
    t.regex(stderr, /same filename as the backing file/);
    t.deepEqual(fs.readFileSync(path.join(directory, 'a')), before, 'nobody may lose it');
  },
);

oracleTest('imagefs map shows compressed clusters and the data file as qemu-img does', (t, directory) => {
  fs.writeFileSync(path.join(directory, 'text.raw'), 'imagefs '.repeat(MIB / 8));
  make(directory, 'convert', '-c', '-O', 'qcow2', 'text.raw', 'c');
  const ours = imagefs(directory, ['map', '--output=json', 'c']).stdout;
  t.regex(ours, /"compressed": true/);
  const without = (text: string) => text.replaceAll(/, "compressed": (true|false)/g, '');
  t.is(without(ours), without(qemuImg(directory, ['map', '--output=json', 'c']).stdout));
  t.is(imagefs(directory, ['map', 'c']).code, qemuImg(directory, ['map', 'c']).code);
  make(directory, 'create', '-q', '-f', 'qcow2', '-o', 'data_file=d,preallocation=metadata', 'e', '1M');
  sameAnswer(t, directory, ['map', 'e']);
  sameAnswer(t, directory, ['map', '--output=json', 'e']);
});
