import * as fs from 'node:fs';
import * as path from 'node:path';
import { main } from '../../src/cli/main';
import { imagefs, make, oracleTest, qemuImg, sameAnswer } from './qemu';

const KIB = 1024;
/** Larger clusters too: there QEMU's limit overflows, or its L1 table makes the files of this test large. */
const CLUSTER_SIZES = [4, 8, 16, 32, 64, 128, 256, 512, 1024].map((size) => size * KIB);
const TABLE_SIZES = [1, 2, 4, 8, 16];

async function createBoth(directory: string, words: string[], tail: string[]): Promise<[Buffer, Buffer]> {
  make(directory, 'create', '-q', '-f', 'qed', ...words, 'theirs.qed', ...tail);
  const code = await main(['create', '-q', '-f', 'qed', ...words, path.join(directory, 'ours.qed'), ...tail]);
  if (code !== 0) throw new Error(`imagefs create ${words.join(' ')}: exit code ${code}`);
  return [fs.readFileSync(path.join(directory, 'theirs.qed')), fs.readFileSync(path.join(directory, 'ours.qed'))];
}

oracleTest(
  'imagefs create writes the bytes of qemu-img create for every cluster and table size',
  async (t, directory) => {
    let cases = 0;
    for (const clusterSize of CLUSTER_SIZES) {
      for (const tableSize of TABLE_SIZES) {
        const options = ['-o', `cluster_size=${clusterSize},table_size=${tableSize}`];
        const [theirs, ours] = await createBoth(directory, options, ['1M']);
        t.true(ours.equals(theirs), options.join(' '));
        cases++;
      }
    }
    t.is(cases, 45);
  },
);

const SIZES = ['0', '1', '511', '512', '513', '1000000', '1.5M', '10G', '1T', '64T', '0x100000', '1000b', '3k'];

oracleTest('imagefs create writes the bytes of qemu-img create for every kind of size', async (t, directory) => {
  for (const size of SIZES) {
    const [theirs, ours] = await createBoth(directory, [], [size]);
    t.true(ours.equals(theirs), size);
  }
});

const BACKINGS: [words: string[], tail: string[]][] = [
  [['-b', 'base.raw', '-F', 'raw'], []],
  [['-b', 'base.raw', '-F', 'raw'], ['5M']],
  [['-b', 'base.qed', '-F', 'qed'], []],
  [['-b', 'base.qed', '-F', 'raw'], []],
  [['-b', './base.qed', '-F', 'qed', '-o', 'cluster_size=4k'], []],
  [['-o', 'backing_file=base.qed,backing_fmt=qed,table_size=2'], []],
  [['-o', 'backing_file=ba,,se.raw,backing_fmt=raw'], []],
  [['-b', 'bäse.raw', '-F', 'raw'], []],
  [['-u', '-b', 'missing.qed', '-F', 'qed'], ['1M']],
  [['-u', '-b', `${'x'.repeat(1000)}.qed`, '-F', 'qed', '-o', 'cluster_size=4k'], ['1M']],
  [['-o', 'preallocation=off'], ['1M']],
  [['-o', 'preallocation=falloc'], ['1M']],
  [['-o', 'preallocation=full'], ['1M']],
  [['-o', 'size=2M'], []],
];

oracleTest('imagefs create writes the bytes of qemu-img create over backing files', async (t, directory) => {
  make(directory, 'create', '-q', '-f', 'raw', 'base.raw', '3M');
  for (const name of ['ba,se.raw', 'bäse.raw'])
    fs.copyFileSync(path.join(directory, 'base.raw'), path.join(directory, name));
  make(directory, 'create', '-q', '-f', 'qed', 'base.qed', '2M');
  for (const [words, tail] of BACKINGS) {
    const [theirs, ours] = await createBoth(directory, words, tail);
    t.true(ours.equals(theirs), [...words, ...tail].join(' '));
  }
  t.is(BACKINGS.length, 14);
});

oracleTest('imagefs create makes raw images like qemu-img', async (t, directory) => {
  for (const [options, size] of [
    ['', '1M'],
    ['', '513'],
    ['', '0'],
    ['preallocation=falloc', '1M'],
    ['preallocation=full', '2500k'],
  ] as const) {
    const words = options === '' ? [] : ['-o', options];
    make(directory, 'create', '-q', '-f', 'raw', ...words, 'theirs.raw', size);
    t.is(await main(['create', '-q', '-f', 'raw', ...words, path.join(directory, 'ours.raw'), size]), 0);
    const [theirs, ours] = ['theirs.raw', 'ours.raw'].map((name) => fs.statSync(path.join(directory, name)));
    t.is(ours?.size, theirs?.size, `${options} ${size}`);
    // Without preallocation QEMU writes the first block all the same, to learn about the host's alignment.
    if (options !== '') t.is(ours?.blocks, theirs?.blocks, `${options} ${size}`);
    t.true(fs.readFileSync(path.join(directory, 'ours.raw')).every((byte) => byte === 0));
  }
});

oracleTest('imagefs create prints what qemu-img create prints', (t, directory) => {
  make(directory, 'create', '-q', '-f', 'raw', 'ba,se.raw', '1M');
  for (const words of [
    ['-f', 'qed', 'x.qed', '513'],
    ['-f', 'qed', '-o', 'table_size=2,cluster_size=8k', '-b', 'ba,se.raw', '-F', 'raw', 'x.qed'],
    ['-f', 'qed', '-o', 'preallocation=full', 'x.qed', '1M'],
    ['-q', '-f', 'qed', 'x.qed', '1M'],
    ['x.raw', '1M'],
  ]) {
    sameAnswer(t, directory, ['create', ...words]);
  }
});

oracleTest('imagefs create makes images that qemu-img cannot make or open', (t, directory) => {
  const geometries = [
    'cluster_size=64M,table_size=16',
    'cluster_size=16M,table_size=16',
    'cluster_size=64M,table_size=1',
    'table_size=1',
  ];
  for (const options of geometries) {
    t.is(imagefs(directory, ['create', '-q', '-f', 'qed', '-o', options, 'x.qed', '1G']).code, 0, options);
    const info = JSON.parse(imagefs(directory, ['info', '--output=json', 'x.qed']).stdout);
    t.is(info['virtual-size'], 1024 ** 3, options);
    t.is(imagefs(directory, ['check', 'x.qed']).code, 0, options);
    t.not(qemuImg(directory, ['info', 'x.qed']).code, 0, `${options}: QEMU's bug is gone: extend the matrix`);
  }
});

const REFUSED: string[][] = [
  ['-f', 'qed', 'x', '65T'],
  ['-f', 'qed', 'x'],
  ['-f', 'qed', '-o', 'cluster_size=65537', 'x', '1M'],
  ['-f', 'qed', '-o', 'cluster_size=2048', 'x', '1M'],
  ['-f', 'qed', '-o', 'cluster_size=128M', 'x', '1M'],
  ['-f', 'qed', '-o', 'table_size=3', 'x', '1M'],
  ['-f', 'qed', '-o', 'table_size=32', 'x', '1M'],
  ['-f', 'qed', '-o', 'preallocation=metadata', 'x', '1M'],
  ['-f', 'qed', '-o', 'unknown=1', 'x', '1M'],
  ['-f', 'qed', '-o', '', 'x', '1M'],
  ['-f', 'qed', '-o', 'size=1M', 'x', '1M'],
  ['-f', 'qed', '-b', 'base.raw', 'x'],
  ['-f', 'qed', '-b', '', '-F', 'raw', 'x', '1M'],
  ['-f', 'qed', '-b', 'missing.raw', '-F', 'raw', 'x', '1M'],
  ['-f', 'qed', '-b', 'base.raw', '-F', 'qed', 'x'],
  ['-f', 'raw', '-b', 'base.raw', '-F', 'raw', 'x'],
  ['-f', 'qed', '-u', '-b', 'missing.raw', '-F', 'raw', 'x'],
  ['-f', 'nope', 'x', '1M'],
  ['-f', 'qed', 'x', '1kk'],
  ['-f', 'qed', 'x', '1.5'],
  ['-f', 'qed', 'x', '16E'],
  ['-f', 'qed', 'x', '1M', '2M'],
  ['-f', 'qed', 'missing/x', '1M'],
  ['-f', 'qed', 'directory', '1M'],
  ['-f', 'qed'],
];

oracleTest('imagefs create refuses what qemu-img refuses, in one line, and leaves no file', (t, directory) => {
  make(directory, 'create', '-q', '-f', 'raw', 'base.raw', '3M');
  fs.mkdirSync(path.join(directory, 'directory'));
  for (const words of REFUSED) {
    const title = words.join(' ');
    t.is(qemuImg(directory, ['create', ...words]).code, 1, title);
    fs.rmSync(path.join(directory, 'x'), { force: true });
    const ours = imagefs(directory, ['create', ...words]);
    t.is(ours.code, 1, title);
    t.regex(ours.stderr, /^imagefs: [^\n]+\n$/, title);
    t.false(fs.existsSync(path.join(directory, 'x')), title);
  }
  t.is(REFUSED.length, 25);
});
