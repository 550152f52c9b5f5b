/**
 * Who may open what while somebody holds it: every pair of imagefs and QEMU's tools, in both directions, with real processes. QEMU's
 * words are an interface: scripts look for them.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { findDaemons } from '../../src/daemon/processes';
import { waitForExit } from '../../src/system/process';
import { daemonAt, directory, HANG_MS, isMounted, required, run, workspace } from './cli';
import { type CommandWords, runCommands } from './command-batch';

/** What a try comes to: it works, or it does not get this lock. */
type Outcome = 'ok' | '"write"' | 'shared "write"' | '"resize"';
type Row = readonly [outcome: Outcome, ...words: string[]];

/** base ← mid ← top, base ← other, raw ← over-raw, data ← external, and a raw disk. */
async function images(t: ExecutionContext): Promise<string | undefined> {
  const place = workspace(t);
  try {
    await run('qemu-img', ['--version']);
  } catch {
    return required(t, false, 'qemu-img and qemu-io (package qemu-utils) are not installed') ? place : undefined;
  }
  const create = async (...words: string[]): Promise<void> => {
    const made = await run('qemu-img', ['create', '-q', ...words], { cwd: place });
    t.is(made.code, 0, made.stderr);
  };
  await create('-f', 'qcow2', 'base.qcow2', '1M');
  await create('-f', 'raw', 'raw.img', '1M');
  await create('-f', 'qcow2', '-b', 'base.qcow2', '-F', 'qcow2', 'mid.qcow2');
  await create('-f', 'qcow2', '-b', 'mid.qcow2', '-F', 'qcow2', 'top.qcow2');
  await create('-f', 'qcow2', '-b', 'base.qcow2', '-F', 'qcow2', 'other.qcow2');
  await create('-f', 'qcow2', '-b', 'raw.img', '-F', 'raw', 'over-raw.qcow2');
  await create('-f', 'qcow2', '-o', 'data_file=data.raw,data_file_raw=on', 'external.qcow2', '1M');
  directory(place, 'mnt');
  directory(place, 'second');
  return place;
}

/** qemu-io with an image open until the test ends or it is let go. */
async function qemuHolds(t: ExecutionContext, place: string, ...words: string[]): Promise<() => Promise<void>> {
  const child: ChildProcess = spawn('qemu-io', words, { cwd: place, stdio: ['pipe', 'pipe', 'inherit'] });
  t.teardown(() => child.kill('SIGKILL'));
  const ended = new Promise<void>((resolve) => child.once('close', () => resolve()));
  await new Promise<void>((resolve, reject) => {
    let text = '';
    child.stdout?.on('data', (data: Buffer) => {
      text += data.toString();
      if (text.includes('read 512/512')) resolve();
    });
    child.once('close', () => reject(new Error(`qemu-io ${words.join(' ')} ended: ${text}`)));
    child.stdin?.write('read 0 512\n');
  });
  return async () => {
    child.stdin?.end('quit\n');
    await ended;
  };
}

/** Exit code 63 is a check of a raw image, which was opened. */
function judge(t: ExecutionContext, row: string, outcome: Outcome, ran: { code: number | null; text: string }): void {
  const label = `${row}: exit code ${ran.code}, ${ran.text}`;
  const words = /Failed to get ((?:shared )?"[a-z ]+") lock[.\n] ?Is another process using the image \[[^\]]+\]\?/;
  const lock = words.exec(ran.text)?.[1];
  if (outcome === 'ok') t.true(lock === undefined && (ran.code === 0 || ran.code === 63), label);
  else t.true(lock === outcome && ran.code !== 0, label);
}

async function tryQemu(t: ExecutionContext, place: string, rows: readonly Row[]): Promise<void> {
  for (const [outcome, ...words] of rows) {
    const ran = await run(words[0] === '-c' || words[0] === '-r' ? 'qemu-io' : 'qemu-img', words, { cwd: place });
    judge(t, `QEMU: ${words.join(' ')}`, outcome, { code: ran.code, text: ran.stdout + ran.stderr });
  }
}

/** Mounts are at `second`, and taken down again. */
async function tryOurs(t: ExecutionContext, place: string, rows: readonly Row[]): Promise<void> {
  const commands = rows.flatMap(([outcome, ...words]): CommandWords[] => {
    if (words[0] !== 'mount') return [words];
    return [[...words, 'second'], ...(outcome === 'ok' ? [['umount', 'second']] : [])];
  });
  const results = await runCommands(place, commands);
  let at = 0;
  for (const [outcome, ...words] of rows) {
    const { code, stdout, stderr } = results[at++] ?? { code: -1, stdout: '', stderr: '' };
    judge(t, `imagefs: ${words.join(' ')}`, outcome, { code, text: stdout + stderr });
    if (outcome !== 'ok') t.regex(stderr, /^[^\n]+\n$/, 'one line');
    if (words[0] !== 'mount' || outcome !== 'ok') continue;
    const left = results[at++];
    t.deepEqual([left?.code, left?.stderr], [0, ''], words.join(' '));
  }
  t.false(isMounted(path.join(place, 'second')), 'a lock that cannot be taken leaves no mount behind');
  const left = findDaemons().filter(({ mountpoint }) => mountpoint === path.join(place, 'second'));
  t.deepEqual(left, [], 'and no daemon');
}

async function mountHere(t: ExecutionContext, place: string, ...words: string[]): Promise<void> {
  const [mounted] = await runCommands(place, [['mount', ...words, 'mnt']]);
  t.deepEqual([mounted?.code, mounted?.stderr], [0, '']);
}

/** Whoever opens `file` while somebody else writes it. */
const OURS_BESIDE_A_WRITER = (file: string): Row[] => [
  ['shared "write"', 'info', file],
  ['shared "write"', 'check', file],
  ['shared "write"', 'map', file],
  ['"write"', 'check', '-r', 'all', file],
  ['"write"', 'check', '-U', '-r', 'leaks', file],
  ['"write"', 'create', '-q', '-f', 'qcow2', file, '1M'],
  ['"write"', 'mount', file],
  ['"write"', 'mount', '--share-rw', file],
  ['shared "write"', 'mount', '-r', file],
  ['ok', 'info', '-U', file],
  ['ok', 'check', '-U', file],
  ['ok', 'map', '-U', file],
  ['ok', 'snapshot', '-l', '-U', file],
];

test('while imagefs writes an image, QEMU and imagefs are kept off it and its layers; kill -9 leaves no lock', async (t) => {
  const place = await images(t);
  if (place === undefined) return;
  await mountHere(t, place, 'top.qcow2');
  const files = ['top.qcow2', 'mid.qcow2', 'base.qcow2'].map((name) => path.join(place, name));
  const before = files.map((file) => fs.readFileSync(file));
  await tryQemu(t, place, [
    ['shared "write"', 'info', 'top.qcow2'],
    ['shared "write"', 'check', 'top.qcow2'],
    ['shared "write"', 'map', 'top.qcow2'],
    ['shared "write"', 'snapshot', '-l', 'top.qcow2'],
    ['shared "write"', 'convert', 'top.qcow2', 'copy.img'],
    ['shared "write"', '-r', '-c', 'read 0 512', 'top.qcow2'],
    ['"write"', '-c', 'write 0 512', 'top.qcow2'],
    ['"write"', 'check', '-r', 'all', 'top.qcow2'],
    ['"write"', 'snapshot', '-c', 'x', 'top.qcow2'],
    ['"write"', 'resize', 'top.qcow2', '2M'],
    ['"write"', 'create', '-f', 'qcow2', 'top.qcow2', '1M'],
    ['"write"', 'commit', 'top.qcow2'],
    ['ok', 'info', '-U', 'top.qcow2'],
    ['ok', 'check', '-U', 'top.qcow2'],
    ['ok', 'map', '-U', 'top.qcow2'],
    ['ok', '-r', '-U', '-c', 'read 0 512', 'top.qcow2'],
    ['"write"', '-c', 'write 0 512', 'mid.qcow2'],
    ['"write"', '-c', 'write 0 512', 'base.qcow2'],
    ['"write"', 'snapshot', '-c', 'x', 'base.qcow2'],
    ['"write"', 'commit', 'other.qcow2'],
    ['ok', 'info', 'base.qcow2'],
    ['ok', '-r', '-c', 'read 0 512', 'mid.qcow2'],
  ]);
  await tryOurs(t, place, [
    ['shared "write"', 'info', 'top.qcow2'],
    ['"write"', 'check', '-r', 'all', 'top.qcow2'],
    ['"write"', 'mount', 'top.qcow2'],
    ['shared "write"', 'mount', '-r', 'top.qcow2'],
    ['"write"', 'mount', 'mid.qcow2'],
    ['"write"', 'snapshot', '-c', 'x', 'base.qcow2'],
    ['ok', 'mount', 'other.qcow2'],
  ]);
  for (const [index, file] of files.entries()) t.deepEqual(fs.readFileSync(file), before[index], file);

  const { pid } = daemonAt(t, path.join(place, 'mnt'));
  process.kill(pid, 'SIGKILL');
  t.true(await waitForExit(pid, HANG_MS));
  await tryQemu(t, place, [['ok', '-c', 'write 0 512', 'top.qcow2']]);
});

test('while imagefs reads an image, readers share it and nobody writes it', async (t) => {
  const place = await images(t);
  if (place === undefined) return;
  await mountHere(t, place, '-r', 'top.qcow2');
  await tryQemu(t, place, [
    ['ok', 'info', 'top.qcow2'],
    ['ok', '-r', '-c', 'read 0 512', 'top.qcow2'],
    ['ok', 'compare', 'top.qcow2', 'other.qcow2'],
    ['"write"', '-c', 'write 0 512', 'top.qcow2'],
    ['"write"', '-c', 'write 0 512', 'base.qcow2'],
    ['"write"', 'snapshot', '-c', 'x', 'top.qcow2'],
  ]);
  await tryOurs(t, place, [
    ['ok', 'check', 'top.qcow2'],
    ['ok', 'mount', '-r', 'top.qcow2'],
    ['"write"', 'mount', 'top.qcow2'],
    ['"write"', 'snapshot', '-c', 'x', 'top.qcow2'],
  ]);
});

test('while QEMU writes an image, imagefs is kept off it and its layers; -U reads along and says so', async (t) => {
  const place = await images(t);
  if (place === undefined) return;
  const letGo = await qemuHolds(t, place, '-f', 'qcow2', 'top.qcow2');
  await tryOurs(t, place, [
    ...OURS_BESIDE_A_WRITER('top.qcow2'),
    ['"write"', 'snapshot', '-c', 'x', 'top.qcow2'],
    ['shared "write"', 'snapshot', '-l', 'top.qcow2'],
    ['"write"', 'mount', 'base.qcow2'],
    ['"write"', 'check', '-r', 'all', 'base.qcow2'],
    ['ok', 'mount', '-r', 'base.qcow2'],
  ]);
  await mountHere(t, place, '-r', '-U', 'top.qcow2');
  for (const name of ['info.json', 'layers/0-top.qcow2/info.json', 'layers/2-base.qcow2/info.json']) {
    const info = JSON.parse(fs.readFileSync(path.join(place, 'mnt', name), 'utf8')) as { consistent?: boolean };
    t.is(info.consistent, false, name);
  }
  // Whoever reads along keeps nobody from writing.
  await letGo();
  await tryQemu(t, place, [['ok', '-c', 'write 0 512', 'top.qcow2']]);
  // Two writers would destroy the image: through no door.
  const doors = [
    ['mount', '-U', 'top.qcow2', 'second'],
    ['mount.imagefs', 'top.qcow2', 'second', '-o', 'force_share'],
  ];
  for (const { code, stderr } of await runCommands(place, doors)) {
    t.true(code === 1 || code === 2, stderr);
    t.regex(stderr, /^[^\n]*needs --read-only[^\n]*\n$/);
  }
  t.false(isMounted(path.join(place, 'second')));
});

test('while QEMU reads an image, imagefs may read it too and not write; of its base as well', async (t) => {
  const place = await images(t);
  if (place === undefined) return;
  await qemuHolds(t, place, '-r', '-f', 'qcow2', 'top.qcow2');
  await tryOurs(t, place, [
    ['ok', 'info', 'top.qcow2'],
    ['ok', 'mount', '-r', 'top.qcow2'],
    ['"write"', 'mount', 'top.qcow2'],
  ]);
});

test('a base that QEMU writes cannot back a mount', async (t) => {
  const place = await images(t);
  if (place === undefined) return;
  await qemuHolds(t, place, '-f', 'qcow2', 'base.qcow2');
  await tryOurs(t, place, [
    ['shared "write"', 'mount', 'top.qcow2'],
    ['shared "write"', 'mount', '-r', 'other.qcow2'],
    ['shared "write"', 'map', 'top.qcow2'],
    ['ok', 'mount', '-r', '-U', 'top.qcow2'],
    ['ok', 'info', 'top.qcow2'],
  ]);
});

test('a raw disk has one writer, whoever it is, unless both say share-rw; looking at it needs no -U', async (t) => {
  const place = await images(t);
  if (place === undefined) return;
  const letGo = await qemuHolds(t, place, '-f', 'raw', 'raw.img');
  await tryOurs(t, place, [
    ['shared "write"', 'mount', 'raw.img'],
    ['shared "write"', 'mount', '-r', 'raw.img'],
    ['shared "write"', 'mount', 'over-raw.qcow2'],
    ['ok', 'info', 'raw.img'],
    ['ok', 'check', 'raw.img'],
    ['ok', 'mount', '--share-rw', 'raw.img'],
  ]);
  await letGo();
  await mountHere(t, place, 'raw.img');
  await tryQemu(t, place, [
    ['"write"', '-c', 'write 0 512', 'raw.img'],
    ['"write"', 'resize', '-f', 'raw', 'raw.img', '2M'],
    ['shared "write"', 'convert', '-f', 'raw', 'raw.img', 'copy.img'],
    ['shared "write"', 'convert', 'over-raw.qcow2', 'copy.img'],
    ['ok', 'info', 'raw.img'],
  ]);
  await tryOurs(t, place, [
    ['"write"', 'mount', 'raw.img'],
    ['"write"', 'mount', '--share-rw', 'raw.img'],
    ['ok', 'info', 'raw.img'],
  ]);
  const [left] = await runCommands(place, [['umount', 'mnt']]);
  t.is(left?.code, 0, left?.stderr);
  await mountHere(t, place, '-o', 'share_rw', 'raw.img');
  await tryQemu(t, place, [['ok', '-c', 'write 0 512', 'raw.img']]);
  await tryOurs(t, place, [
    ['shared "write"', 'mount', 'raw.img'],
    ['ok', 'mount', '--share-rw', 'raw.img'],
  ]);
});

test('the data file of an image is locked with it', async (t) => {
  const place = await images(t);
  if (place === undefined) return;
  await mountHere(t, place, 'external.qcow2');
  await tryQemu(t, place, [
    ['"write"', '-c', 'write 0 512', 'data.raw'],
    ['"write"', '-c', 'write 0 512', 'external.qcow2'],
  ]);
  await tryOurs(t, place, [['"write"', 'mount', 'data.raw']]);
  t.is((await runCommands(place, [['umount', 'mnt']]))[0]?.code, 0);
  await qemuHolds(t, place, '-f', 'qcow2', 'external.qcow2');
  await tryOurs(t, place, [['"resize"', 'mount', 'data.raw']]);
});
