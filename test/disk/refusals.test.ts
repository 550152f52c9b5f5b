/** What a mount refuses: it must say why at once, with the right errno, and never hang. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { MIB } from '../../src/units';
import { HANG_MS, workspace } from '../mount/cli';
import {
  DISK_SIZE,
  mount,
  noise,
  onBothSessions,
  overlayImage,
  program,
  sameBytes,
  standAloneImage,
  succeed,
} from './disk-mount';

const VIEW = ['disk', 'info.json', 'map.json'];
const FILES = [
  ...VIEW,
  'stats.json',
  ...VIEW.map((name) => `layers/0-vm.qed/${name}`),
  ...VIEW.map((name) => `layers/1-base.img/${name}`),
];

/** The errno of a file operation, `ok`, or `hangs`. */
async function outcome(operation: () => Promise<unknown>): Promise<string> {
  let timer: NodeJS.Timeout | undefined;
  const hangs = new Promise<string>((resolve) => {
    timer = setTimeout(() => resolve('hangs'), HANG_MS);
  });
  const ends = operation().then(
    () => 'ok',
    (error: unknown) => String((error as { code?: unknown }).code),
  );
  const first = await Promise.race([ends, hangs]);
  clearTimeout(timer);
  return first;
}

async function openFor(file: string, flags: string): Promise<void> {
  const handle = await fs.promises.open(file, flags);
  await handle.close();
}

onBothSessions('layers, texts and everything in a read-only mount answer EROFS', async (t, session) => {
  const directory = workspace(t);
  const { image, base, shadow } = overlayImage(directory);
  const before = [image, base].map((file) => fs.readFileSync(file));
  for (const args of [[image], ['-r', image]]) {
    const { mountpoint, disk, unmount } = await mount(t, session, args);
    for (const name of FILES) {
      const writable = name === 'disk' && args.length === 1;
      const file = path.join(mountpoint, name);
      const label = `${args.join(' ')}: ${name}`;
      t.is(await outcome(() => openFor(file, 'r+')), writable ? 'ok' : 'EROFS', label);
      t.is(await outcome(() => openFor(file, 'a')), writable ? 'ok' : 'EROFS', label);
      t.is(await outcome(() => openFor(file, 'w')), writable ? 'ok' : 'EROFS', label);
      t.is(await outcome(() => fs.promises.truncate(file, 0)), writable ? 'ok' : 'EROFS', label);
    }
    sameBytes(t, fs.readFileSync(disk), shadow, args.join(' '));
    sameBytes(t, fs.readFileSync(path.join(mountpoint, 'layers/0-vm.qed/disk')), shadow, 'the top layer');
    await unmount();
  }
  for (const [index, file] of [image, base].entries())
    sameBytes(t, fs.readFileSync(file), before[index] as Buffer, file);
});

/** What nobody may do in a mount. A tree that cannot change says EPERM, one mounted read-only EROFS. */
const CHANGES: [name: string, change: (at: string, outside: string) => Promise<unknown>][] = [
  ['create', (at) => openFor(path.join(at, 'new'), 'w')],
  ['create exclusively', (at) => openFor(path.join(at, 'new'), 'wx')],
  ['create in layers', (at) => openFor(path.join(at, 'layers', 'new'), 'w')],
  ['mkdir', (at) => fs.promises.mkdir(path.join(at, 'new'))],
  ['symlink', (at) => fs.promises.symlink('disk', path.join(at, 'new'))],
  ['link', (at) => fs.promises.link(path.join(at, 'disk'), path.join(at, 'new'))],
  ['rename', (at) => fs.promises.rename(path.join(at, 'disk'), path.join(at, 'new'))],
  ['rename over', (at) => fs.promises.rename(path.join(at, 'disk'), path.join(at, 'info.json'))],
  ['rename a folder', (at) => fs.promises.rename(path.join(at, 'layers'), path.join(at, 'new'))],
  ['unlink the disk', (at) => fs.promises.unlink(path.join(at, 'disk'))],
  ['unlink a text', (at) => fs.promises.unlink(path.join(at, 'info.json'))],
  ['rmdir', (at) => fs.promises.rmdir(path.join(at, 'layers', '0-vm.qed'))],
  ['chmod', (at) => fs.promises.chmod(path.join(at, 'disk'), 0o666)],
  ['chmod a folder', (at) => fs.promises.chmod(path.join(at, 'layers'), 0o777)],
  ['chown', (at) => fs.promises.chown(path.join(at, 'disk'), 12, 34)],
];

onBothSessions('creating, renaming and removing are refused with EPERM or EROFS', async (t, session) => {
  const directory = workspace(t);
  const image = standAloneImage(directory, MIB);
  const list = async (at: string) => (await fs.promises.readdir(at, { recursive: true })).sort();
  for (const readOnly of [false, true]) {
    const { mountpoint, unmount } = await mount(t, session, [...(readOnly ? ['-r'] : []), image]);
    const names = await list(mountpoint);
    for (const [name, change] of CHANGES) {
      const found = await outcome(() => change(mountpoint, directory));
      t.true(found === 'EROFS' || (found === 'EPERM' && !readOnly), `${name}, read-only ${readOnly}: ${found}`);
    }
    const mkfifo = await program('mkfifo', [path.join(mountpoint, 'fifo')]);
    t.regex(mkfifo.stderr, readOnly ? /Read-only file system/ : /Operation not permitted|Read-only file system/);
    t.deepEqual(await list(mountpoint), names);
    await unmount();
  }
  t.is(CHANGES.length, 15);
});

onBothSessions('what is not there is not found, and folders are folders', async (t, session) => {
  const directory = workspace(t);
  const { mountpoint } = await mount(t, session, [standAloneImage(directory, MIB)]);
  const at = (name: string) => path.join(mountpoint, name);
  const cases: [expected: string, operation: () => Promise<unknown>][] = [
    ['ENOENT', () => fs.promises.stat(at('nothing'))],
    ['ENOENT', () => fs.promises.stat(at('layers/9-none'))],
    ['ENOENT', () => fs.promises.readFile(at('partitions'))],
    ['ENOTDIR', () => fs.promises.stat(at('disk/x'))],
    ['ENOTDIR', () => fs.promises.readdir(at('disk'))],
    ['EISDIR', () => fs.promises.readFile(at('layers'))],
    ['EISDIR', () => openFor(at('layers'), 'r+')],
    ['EISDIR', () => fs.promises.truncate(at('layers'), 0)],
    ['ENAMETOOLONG', () => fs.promises.stat(at('n'.repeat(300)))],
  ];
  for (const [index, [expected, operation]] of cases.entries())
    t.is(await outcome(operation), expected, `case ${index}`);
  t.is(cases.length, 9);
});

onBothSessions('touch, cp -p and rsync-like copies may set times, which changes nothing', async (t, session) => {
  const directory = workspace(t);
  const source = path.join(directory, 'source.img');
  const content = noise(MIB, 1);
  fs.writeFileSync(source, content);
  const { disk } = await mount(t, session, [standAloneImage(directory, MIB)]);
  t.is(await outcome(() => fs.promises.utimes(disk, 1, 2)), 'ok');
  await succeed(t, 'touch', [disk]);
  t.is((await program('cp', ['--preserve=timestamps', source, disk])).code, 0);
  sameBytes(t, fs.readFileSync(disk), content, 'cp -p');
});

onBothSessions('the whole tree can be walked, listed and read', async (t, session) => {
  const directory = workspace(t);
  const { image } = overlayImage(directory);
  const { mountpoint } = await mount(t, session, [image]);
  const found = await succeed(t, 'find', [mountpoint, '-type', 'f', '-printf', '%P %s\\n']);
  const lines = found.stdout.trim().split('\n').sort();
  t.deepEqual(
    lines.map((line) => line.split(' ')[0]),
    [...FILES].sort(),
  );
  for (const line of lines.filter((text) => text.includes('map.json'))) t.true(line.endsWith(' 0'), line);
  t.true(lines.includes(`layers/1-base.img/disk ${5 * MIB + 512}`));
  t.true(lines.includes(`disk ${DISK_SIZE}`));
  await succeed(t, 'ls', ['-laR', mountpoint]);
  const read = await succeed(t, 'sh', ['-c', 'find "$1" -name "*.json" -exec cat {} +', 'sh', mountpoint]);
  t.true(read.stdout.length > 500);
  t.deepEqual(fs.statSync(path.join(mountpoint, 'disk')).mode % 0o1000, fs.statSync(image).mode % 0o1000);
});
