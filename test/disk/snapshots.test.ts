/** Internal snapshots on real mounts: those that qemu-img made, read; and those that are made, renamed and deleted there. */
import { createHash } from 'node:crypto';
import * as fs from 'node:fs';
import * as path from 'node:path';
import test from 'ava';
import { probeImage } from '../../src/block/open';
import type { Qcow2Header } from '../../src/formats/qcow2/layout';
import { encodeSnapshotTable, readSnapshotTable } from '../../src/formats/qcow2/snapshot-table';
import { FileStorage } from '../../src/storage/file';
import { isAlive } from '../../src/system/process';
import { alignUp, MIB } from '../../src/units';
import { isRoot, mount as mountOnly, required, until, workspace } from '../mount/cli';
import { mount, noise, onBothSessions, program, random, sameBytes, standAloneImage, succeed } from './disk-mount';
import { convertedSnapshot, leaveSound, put, qcow2, qemuIsHere, qemuWrites, SIZE, snapshotsIn } from './snapshot-mount';

/** Places of the count and of the offset of the snapshot table in the header. */
const SNAPSHOT_COUNT_AT = 60;
const SNAPSHOTS_OFFSET_AT = 64;

/** Gives the image's only snapshot a thousand names. Its counts are wrong then: good to be read, for nothing else. */
function multiplySnapshot(image: string, count: number): void {
  const storage = FileStorage.open(image, { readOnly: false });
  try {
    const header = probeImage(storage).header as Qcow2Header;
    const [only] = readSnapshotTable(storage, header);
    const all = Array.from({ length: count }, (_, index) => {
      return { ...only, idBytes: Buffer.from(String(index + 1)), nameBytes: Buffer.from(`s${index}`) };
    });
    const table = encodeSnapshotTable(all);
    const offset = alignUp(storage.size(), header.clusterSize);
    storage.write(offset, table, 0, table.length, 'snapshot-update');
    const fields = Buffer.alloc(SNAPSHOTS_OFFSET_AT + 8 - SNAPSHOT_COUNT_AT);
    fields.writeUInt32BE(count);
    fields.writeBigUInt64BE(BigInt(offset), SNAPSHOTS_OFFSET_AT - SNAPSHOT_COUNT_AT);
    storage.write(SNAPSHOT_COUNT_AT, fields, 0, fields.length, 'header-update');
  } finally {
    storage.close();
  }
}

onBothSessions('snapshots of qemu-img are views of their own content and size', async (t, session) => {
  if (!(await qemuIsHere(t))) return;
  const directory = workspace(t);
  const base = path.join(directory, 'base.raw');
  fs.writeFileSync(base, noise(3 * MIB, 1));
  const image = await qcow2(t, directory, SIZE, '-b', base, '-F', 'raw');
  const snapshot = (name: string) => succeed(t, 'qemu-img', ['snapshot', '-c', name, image]);
  await qemuWrites(t, image, 'write -P 1 100k 300k');
  await snapshot('monday');
  await qemuWrites(t, image, 'write -P 2 200k 1M', 'write -z 0 64k');
  await snapshot('tues/day');
  await succeed(t, 'qemu-img', ['resize', '-q', image, String(2 * SIZE)]);
  await qemuWrites(t, image, `write -P 3 ${SIZE} 1M`);
  await snapshot('monday');
  await qemuWrites(t, image, 'write -P 4 0 4M', 'write -P 5 10M 1M');
  const expected = await Promise.all(['1', '2', '3'].map((id) => convertedSnapshot(t, image, id)));

  const mounted = await mount(t, session, [image]);
  const { at, names } = snapshotsIn(mounted);
  t.deepEqual(names(), ['monday', 'monday~3', 'tues_day'].sort());
  for (const [index, name] of ['monday', 'tues_day', 'monday~3'].entries()) {
    t.deepEqual(fs.readdirSync(at(name)).sort(), ['disk', 'info.json', 'map.json']);
    t.is(fs.statSync(at(name, 'disk')).size, name === 'monday~3' ? 2 * SIZE : SIZE);
    const content = fs.readFileSync(at(name, 'disk'));
    // qemu-img shows them as long as the image is now.
    sameBytes(t, content, expected[index].subarray(0, content.length), name);
    t.throws(() => fs.openSync(at(name, 'disk'), 'r+'), { code: 'EROFS' });
    t.throws(() => fs.truncateSync(at(name, 'disk'), 0), { code: 'EROFS' });
    const info = JSON.parse(fs.readFileSync(at(name, 'info.json'), 'utf8')) as Record<string, unknown>;
    t.like(info, { format: 'qcow2', 'virtual-size': content.length });
    t.is((info.snapshots as { id: string }[])[0].id, String(index + 1));
    t.is(fs.statSync(at(name, 'info.json')).size, fs.readFileSync(at(name, 'info.json')).length);
    const map = JSON.parse(fs.readFileSync(at(name, 'map.json'), 'utf8')) as { length: number; depth: number }[];
    t.is(
      map.reduce((sum, { length }) => sum + length, 0),
      content.length,
    );
    t.true(map.some(({ depth }) => depth === 1));
  }
  await leaveSound(t, mounted, image, ['monday', 'tues/day', 'monday']);
});

onBothSessions('mkdir takes, mv renames and rmdir deletes a snapshot', async (t, session) => {
  if (!(await qemuIsHere(t))) return;
  const image = await qcow2(t, workspace(t));
  const mounted = await mount(t, session, [image]);
  const { disk } = mounted;
  const { at, names } = snapshotsIn(mounted);
  t.deepEqual(names(), []);
  const shadow = Buffer.alloc(SIZE);
  const kept = new Map<string, Buffer>();
  for (const [index, name] of ['a', 'b', 'c d', 'ü'].entries()) {
    const content = noise(300_000, index + 10);
    put(disk, content, index * 200_000);
    content.copy(shadow, index * 200_000);
    await succeed(t, 'mkdir', [at(name)]);
    kept.set(name, Buffer.from(shadow));
  }
  put(disk, noise(MIB, 20), 0);
  await succeed(t, 'mv', [at('a'), at('first')]);
  await succeed(t, 'rmdir', [at('b')]);
  t.deepEqual(names().sort(), ['c d', 'first', 'ü']);
  for (const [name, was] of Object.entries({ first: 'a', 'c d': 'c d', ü: 'ü' })) {
    sameBytes(t, fs.readFileSync(at(name, 'disk')), kept.get(was) as Buffer, name);
  }
  const refused: [string, string, () => unknown][] = [
    ['mkdir of what is there', 'EEXIST', () => fs.mkdirSync(at('first'))],
    ['mkdir with a control byte', 'EINVAL', () => fs.mkdirSync(at('a\x07'))],
    ['mkdir with no UTF-8', 'EINVAL', () => fs.mkdirSync(Buffer.concat([Buffer.from(at('x')), Buffer.from([0xff])]))],
    ['mkdir with a long name', 'ENAMETOOLONG', () => fs.mkdirSync(at('n'.repeat(256)))],
    ['mkdir elsewhere', 'EPERM', () => fs.mkdirSync(path.join(mounted.mountpoint, 'new'))],
    ['mkdir in a snapshot', 'EPERM', () => fs.mkdirSync(at('first', 'new'))],
    ['rmdir of what is not there', 'ENOENT', () => fs.rmdirSync(at('b'))],
    ['rmdir elsewhere', 'EPERM', () => fs.rmdirSync(path.join(mounted.mountpoint, 'layers'))],
    ['rmdir of the folder', 'EPERM', () => fs.rmdirSync(path.join(mounted.mountpoint, 'snapshots'))],
    ['unlink in a snapshot', 'EPERM', () => fs.unlinkSync(at('first', 'disk'))],
    ['rename over another', 'EEXIST', () => fs.renameSync(at('first'), at('ü'))],
    ['rename to another folder', 'EPERM', () => fs.renameSync(at('first'), path.join(mounted.mountpoint, 'first'))],
    ['rename of a file', 'EPERM', () => fs.renameSync(at('first', 'disk'), at('first', 'other'))],
    ['a file', 'EPERM', () => fs.writeFileSync(at('file'), '')],
  ];
  for (const [what, code, attempt] of refused) t.throws(attempt, { code }, what);
  t.is(refused.length, 14);
  // Nothing in a snapshot can be removed, so that `rm -r` harms none.
  t.not((await program('rm', ['-rf', at('first')])).code, 0);
  t.deepEqual(names().sort(), ['c d', 'first', 'ü']);
  await leaveSound(t, mounted, image, ['first', 'c d', 'ü']);
  sameBytes(t, await convertedSnapshot(t, image, '1'), kept.get('a') as Buffer, 'what qemu-img reads');
});

test.serial(
  'a snapshot that is deleted while it is read goes at once, and is read to its end (kernel session)',
  async (t) => {
    if (!(await qemuIsHere(t))) return;
    const image = await qcow2(t, workspace(t));
    const mounted = await mount(t, 'kernel', [image]);
    const { at, names } = snapshotsIn(mounted);
    const content = noise(2 * MIB, 3);
    put(mounted.disk, content, 0);
    fs.mkdirSync(at('s'));
    put(mounted.disk, noise(2 * MIB, 4), 0);
    const fd = fs.openSync(at('s', 'disk'), 'r');
    const folder = fs.openSync(at('s'), 'r');
    fs.rmdirSync(at('s'));
    t.deepEqual(names(), []);
    t.throws(() => fs.statSync(at('s')), { code: 'ENOENT' });
    t.throws(() => fs.openSync(`/proc/self/fd/${folder}/disk`, 'r'), { code: 'ENOENT' });
    fs.closeSync(folder);
    fs.mkdirSync(at('s'));
    put(mounted.disk, noise(2 * MIB, 5), 0);
    const found = Buffer.alloc(content.length);
    t.is(fs.readSync(fd, found, 0, found.length, 0), found.length);
    sameBytes(t, found, content, 'the deleted snapshot');
    t.is(fs.fstatSync(fd).size, SIZE);
    sameBytes(t, fs.readFileSync(at('s', 'disk')).subarray(0, 2 * MIB), noise(2 * MIB, 4), 'the new one');
    fs.closeSync(fd);
    const inImage = () =>
      (JSON.parse(fs.readFileSync(path.join(mounted.mountpoint, 'info.json'), 'utf8')) as { snapshots: object[] })
        .snapshots.length;
    await until(t, 'the end of the deleted snapshot', () => inImage() === 1);
    await leaveSound(t, mounted, image, ['s']);
  },
);

test.serial('a snapshot that was deleted while it was read goes with the mount, though nobody closed it', async (t) => {
  if (!(await qemuIsHere(t))) return;
  if (!required(t, isRoot(), 'only root may cut the connection of a mount')) return;
  const image = await qcow2(t, workspace(t));
  const mountpoint = workspace(t);
  const { pid } = await mountOnly(t, [image, mountpoint]);
  const mounted = { mountpoint, disk: path.join(mountpoint, 'disk'), unmount: async () => {} };
  const { at } = snapshotsIn(mounted);
  put(mounted.disk, noise(MIB, 1), 0);
  fs.mkdirSync(at('kept'));
  fs.mkdirSync(at('gone'));
  const fd = fs.openSync(at('gone', 'disk'), 'r');
  fs.rmdirSync(at('gone'));
  // Busy, so it stays; but the kernel lets the daemon go and tells it of no file that is closed.
  await program('umount', ['-f', mountpoint]);
  await until(t, 'the end of the daemon', () => !isAlive(pid));
  t.throws(() => fs.closeSync(fd), { code: 'ENOTCONN' });
  await succeed(t, 'umount', ['-l', mountpoint]);
  await leaveSound(t, mounted, image, ['kept']);
});

test.serial('the native session refuses to delete a snapshot that is read', async (t) => {
  if (!(await qemuIsHere(t))) return;
  const image = await qcow2(t, workspace(t));
  const mounted = await mount(t, 'native', [image]);
  const { at } = snapshotsIn(mounted);
  fs.mkdirSync(at('s'));
  const fd = fs.openSync(at('s', 'disk'), 'r');
  t.throws(() => fs.rmdirSync(at('s')), { code: 'EBUSY' });
  fs.renameSync(at('s'), at('t'));
  t.is(fs.readSync(fd, Buffer.alloc(10), 0, 10, 0), 10, 'a renamed one can be read on');
  fs.closeSync(fd);
  await until(t, 'the end of the reader', () => {
    try {
      fs.rmdirSync(at('t'));
      return true;
    } catch {
      return false;
    }
  });
  await leaveSound(t, mounted, image, []);
});

onBothSessions(
  'twenty snapshots stay as they were while the disk is written and others come and go',
  async (t, session) => {
    if (!(await qemuIsHere(t))) return;
    const size = 2 * MIB;
    const image = await qcow2(t, workspace(t), size);
    const mounted = await mount(t, session, [image]);
    const { at, names } = snapshotsIn(mounted);
    const shadow = Buffer.alloc(size);
    const hashes = new Map<string, string>();
    const hashOf = (content: Buffer) => createHash('sha1').update(content).digest('hex');
    const next = random(7);
    const disk = await fs.promises.open(mounted.disk, 'r+');
    const writeSome = async (seed: number): Promise<void> => {
      const content = noise(1 + Math.floor(next() * 100_000), seed);
      const offset = Math.floor(next() * (size - content.length));
      content.copy(shadow, offset);
      await disk.write(content, 0, content.length, offset);
    };
    for (let index = 0; index < 20; index++) {
      for (let part = 0; part < 5; part++) await writeSome(index * 5 + part);
      await fs.promises.mkdir(at(`s${index}`));
      hashes.set(`s${index}`, hashOf(shadow));
    }

    let busy = true;
    const writer = (async () => {
      let writes = 0;
      for (; busy; writes++) await writeSome(1000 + writes);
      return writes;
    })();
    const inos = new Set<number>();
    const comer = (async () => {
      let rounds = 0;
      for (; busy; rounds++) {
        await fs.promises.mkdir(at(`passing${rounds}`));
        inos.add((await fs.promises.stat(at(`passing${rounds}`, 'disk'))).ino);
        if (rounds > 0) await fs.promises.rmdir(at(`passing${rounds - 1}`));
      }
      await fs.promises.rmdir(at(`passing${rounds - 1}`));
      return rounds;
    })();
    const verify = async (first: number): Promise<void> => {
      for (let index = first; index < 20; index += 2) {
        const name = `s${index}`;
        t.is(hashOf(await fs.promises.readFile(at(name, 'disk'))), hashes.get(name) ?? '', name);
      }
    };
    await Promise.all([verify(0), verify(1)]);
    busy = false;
    const rounds = await comer;
    t.log(`${await writer} writes, ${rounds} snapshots came and went`);
    t.is(inos.size, rounds, 'no number was given twice, though the image gives ids out again');
    await disk.close();
    sameBytes(t, fs.readFileSync(mounted.disk), shadow, 'the live disk');
    t.is(names().length, 20);
    await leaveSound(t, mounted, image, [...hashes.keys()]);
  },
);

onBothSessions('a thousand snapshots mount and list', async (t, session) => {
  if (!(await qemuIsHere(t))) return;
  const image = await qcow2(t, workspace(t));
  await qemuWrites(t, image, 'write -P 9 0 1M');
  await succeed(t, 'qemu-img', ['snapshot', '-c', 's0', image]);
  multiplySnapshot(image, 1000);
  const begun = Date.now();
  const mounted = await mount(t, session, ['-r', image]);
  const { at, names } = snapshotsIn(mounted);
  t.is(names().length, 1000);
  t.log(`mounted and listed after ${Date.now() - begun} ms`);
  const listed = await succeed(t, 'ls', ['-l', path.join(mounted.mountpoint, 'snapshots')]);
  t.is(listed.stdout.match(/ s[0-9]+$/gm)?.length, 1000);
  sameBytes(t, fs.readFileSync(at('s999', 'disk')).subarray(0, MIB), Buffer.alloc(MIB, 9), 's999');
  t.throws(() => fs.mkdirSync(at('new')), { code: 'EROFS' });
  t.throws(() => fs.rmdirSync(at('s1')), { code: 'EROFS' });
  t.throws(() => fs.renameSync(at('s1'), at('t')), { code: 'EROFS' });
  t.false(fs.existsSync(at('s1', '.revert')));
});

onBothSessions('an image whose format has no snapshots has no folder for them', async (t, session) => {
  const { mountpoint } = await mount(t, session, [standAloneImage(workspace(t))]);
  t.throws(() => fs.mkdirSync(path.join(mountpoint, 'snapshots')), { code: 'EPERM' });
  t.false(fs.existsSync(path.join(mountpoint, 'snapshots')));
});
