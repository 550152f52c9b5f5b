import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import * as fs from 'node:fs';
import * as path from 'node:path';
import test from 'ava';
import { FileStorage } from '../../../src/storage/file';
import { lockImage, WRITER_LOCK } from '../../../src/storage/image-lock';
import { CraftedImage, temporaryDirectory } from '../formats/qed-bytes';

const BIN = path.join(__dirname, '..', '..', '..', '..', 'bin', 'imagefs');
const COMMANDS = ['mount', 'umount', 'list', 'create', 'info', 'check', 'map', 'snapshot'];

function imagefs(args: string[], cwd?: string) {
  const { status, stdout, stderr } = spawnSync(process.execPath, [BIN, ...args], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'pipe'],
    ...(cwd === undefined ? {} : { cwd }),
  });
  return { code: status, stdout, stderr };
}

test('imagefs --help and --version answer on standard output', (t) => {
  for (const args of [['--help'], ['-h'], ['help']]) {
    const { code, stdout, stderr } = imagefs(args);
    t.deepEqual([code, stderr], [0, '']);
    for (const name of COMMANDS) t.regex(stdout, new RegExp(`^  ${name} +[A-Z]`, 'm'), name);
  }
  const fields = JSON.parse(fs.readFileSync(path.join(BIN, '..', '..', 'package.json'), 'utf8'));
  t.is(imagefs(['--version']).stdout, `imagefs ${fields.version}\n`);
});

test('imagefs help CMD and imagefs CMD --help are the same text, with exit codes and an example', (t) => {
  for (const name of COMMANDS) {
    const { code, stdout } = imagefs(['help', name]);
    t.is(code, 0, name);
    t.regex(stdout, new RegExp(`^Usage: imagefs ${name}`), name);
    t.regex(stdout, /Exit code/, name);
    t.regex(stdout, /Example/, name);
    t.is(imagefs([name, '--help']).stdout, stdout, name);
  }
});

const USAGE: [args: string[], code: number, line: string][] = [
  [[], 1, "imagefs: Not enough arguments (try 'imagefs --help')\n"],
  [['frob'], 1, "imagefs: Command not found: frob (try 'imagefs --help')\n"],
  [['--frob'], 1, "imagefs: unrecognized option '--frob' (try 'imagefs --help')\n"],
  [['help', 'frob'], 1, "imagefs: Command not found: frob (try 'imagefs --help')\n"],
  [['info', '-z'], 1, "imagefs: unrecognized option '-z' (try 'imagefs info --help')\n"],
  [['create', '-f'], 1, "imagefs: missing argument for option '-f' (try 'imagefs create --help')\n"],
  ...['encryption=on', 'encryption', 'encrypt.format=luks', 'encryption=off,encrypt.format=aes'].flatMap((option) =>
    ['qcow', 'qcow2'].map((format): [string[], number, string] => [
      ['create', '-f', format, '-o', option, 'x', '1M'],
      1,
      `imagefs: Cannot create an encrypted image: '${option === 'encryption' ? 'encryption=on' : option.split(',').reverse()[0]}' is not supported, only 'encryption=off' is (try 'imagefs create --help')\n`,
    ]),
  ),
  [['check'], 1, "imagefs: Expecting one image file name (try 'imagefs check --help')\n"],
];

test('imagefs tells wrong words in one line', (t) => {
  for (const [args, code, line] of USAGE) {
    const ran = imagefs(args);
    t.deepEqual([ran.code, ran.stdout, ran.stderr], [code, '', line], args.join(' '));
  }
  t.is(USAGE.length, 15);
  t.is(imagefs(['list', '--frob']).code, 2, 'commands that qemu-img does not have answer 2');
});

test('imagefs shows a stack only with --debug', (t) => {
  const plain = imagefs(['info', '/does/not/exist']);
  t.is(plain.stderr, 'imagefs: Cannot open "/does/not/exist": No such file or directory\n');
  for (const args of [
    ['--debug', 'info', '/does/not/exist'],
    ['info', '--debug', '/does/not/exist'],
  ]) {
    const { code, stderr } = imagefs(args);
    t.is(code, 1);
    t.true(stderr.startsWith(plain.stderr));
    t.regex(stderr, /\n {4}at /);
    t.regex(stderr, /caused by: .*ENOENT/);
  }
});

test('imagefs ends quietly when nobody reads its output any more', async (t) => {
  // 512 entries of one cluster each: more than the pieces in which output is written.
  const image = new CraftedImage(t, { size: 0x40000000n }, 700).l1(0, 2);
  for (let index = 0; index < 512; index += 2) image.l2(2, index, 3 + index);
  const child = spawn(process.execPath, [BIN, 'map', '--output=json', image.file], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  child.stdout.destroy();
  let stderr = '';
  child.stderr.on('data', (data) => {
    stderr += data;
  });
  const [code] = await once(child, 'close');
  t.deepEqual([code, stderr], [141, '']);
});

test('imagefs create leaves an image alone that is in use, and never half an image', (t) => {
  const directory = temporaryDirectory(t);
  const file = path.join(directory, 'a.qed');
  t.is(imagefs(['create', '-q', '-f', 'qed', file, '1M']).code, 0);
  const before = fs.readFileSync(file);
  const storage = FileStorage.open(file, { readOnly: false });
  t.teardown(() => storage.close());
  lockImage(storage.fd, file, WRITER_LOCK);
  for (const format of ['raw', 'qed']) {
    const { code, stderr } = imagefs(['create', '-q', '-f', format, file, '2M']);
    t.is(code, 1);
    t.regex(stderr, /^imagefs: [^\n]*a\.qed[^\n]*lock[^\n]*\n$/);
  }
  for (const args of [
    ['info', file],
    ['check', file],
    ['check', '-r', 'all', file],
    ['check', '-U', '-r', 'all', file],
    ['map', file],
  ]) {
    t.is(imagefs(args).code, 1, args.join(' '));
  }
  for (const args of [
    ['info', '-U', file],
    ['check', '-U', file],
    ['map', '-U', file],
  ])
    t.is(imagefs(args).code, 0, args.join(' '));
  t.deepEqual(fs.readFileSync(file), before);
});

test('imagefs create keeps what is there when the options are not legal', (t) => {
  const file = path.join(temporaryDirectory(t), 'precious');
  fs.writeFileSync(file, 'precious');
  t.is(imagefs(['create', '-q', '-f', 'qed', '-o', 'table_size=3', file, '1M']).code, 1);
  t.is(fs.readFileSync(file, 'utf8'), 'precious');
});

test('imagefs create never overwrites a layer of the chain that it builds on', (t) => {
  const directory = temporaryDirectory(t);
  t.is(imagefs(['create', '-q', '-f', 'raw', 'base.img', '1M'], directory).code, 0);
  t.is(imagefs(['create', '-q', '-f', 'qed', '-b', 'base.img', '-F', 'raw', 'mid.qed'], directory).code, 0);
  fs.symlinkSync('base.img', path.join(directory, 'link'));
  for (const target of ['mid.qed', 'base.img', 'link', './base.img']) {
    const { code, stderr } = imagefs(['create', '-q', '-f', 'qed', '-b', 'mid.qed', '-F', 'qed', target], directory);
    t.is(code, 1, target);
    t.regex(stderr, /part of the backing chain/);
  }
  t.is(fs.statSync(path.join(directory, 'base.img')).size, 1024 * 1024);
});

const SPECIAL: [name: string, make: (file: string) => void][] = [
  ['directory', (file) => fs.mkdirSync(file)],
  ['fifo', (file) => spawnSync('mkfifo', [file])],
];

test('imagefs refuses what is no file, at once', (t) => {
  const directory = temporaryDirectory(t);
  for (const [name, make] of SPECIAL) {
    const file = path.join(directory, name);
    make(file);
    for (const args of [
      ['info', file],
      ['check', file],
      ['map', file],
      ['create', '-q', '-f', 'qed', file, '1M'],
    ]) {
      const ran = spawnSync(process.execPath, [BIN, ...args], { encoding: 'utf8', timeout: 20_000 });
      t.is(ran.status, 1, args.join(' '));
      t.regex(ran.stderr, /^imagefs: Cannot [^\n]+\n$/, args.join(' '));
    }
    t.true(fs.existsSync(file));
  }
});

test('imagefs info --backing-chain tells a loop and a missing layer', (t) => {
  const directory = temporaryDirectory(t);
  for (const [name, base] of [
    ['a.qed', 'b.qed'],
    ['b.qed', 'a.qed'],
    ['c.qed', 'gone.qed'],
  ] as const) {
    t.is(imagefs(['create', '-q', '-f', 'qed', '-u', '-b', base, '-F', 'qed', name, '1M'], directory).code, 0);
  }
  const loop = imagefs(['info', '--backing-chain', 'a.qed'], directory);
  t.is(loop.code, 1);
  t.regex(loop.stderr, /^imagefs: [^\n]*"a\.qed"[^\n]*\n$/);
  t.regex(imagefs(['info', '--backing-chain', 'c.qed'], directory).stderr, /^imagefs: [^\n]*"gone\.qed"[^\n]*\n$/);
  t.is(imagefs(['info', 'c.qed'], directory).code, 0);
});

test('a name inside an image cannot command the terminal or fake a line of output', (t) => {
  const file = path.join(temporaryDirectory(t), 'a.qed');
  const name = 'x\u001b[2J\nimagefs: all is well\u009b1m';
  t.is(imagefs(['create', '-q', '-f', 'qed', '-u', '-b', name, '-F', 'qed', file, '1M']).code, 0);
  const { code, stderr } = imagefs(['map', file]);
  t.is(code, 1);
  t.regex(stderr, /^imagefs: Cannot open [^\n]*x\\x1b\[2J\\x0aimagefs: all is well\\x9b1m"[^\n]*\n$/);
  const traced = imagefs(['map', '--debug', file]).stderr.split('\n');
  t.true(traced.length > 3, 'a stack has its lines');
});
