/** Reverting the live disk of a mount to a snapshot, by `snapshots/NAME/.revert`. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import test from 'ava';
import { MIB } from '../../src/units';
import { mapFile } from '../fuse/calls';
import { workspace } from '../mount/cli';
import { mount, noise, onBothSessions, sameBytes, succeed } from './disk-mount';
import { leaveSound, put, qcow2, qemuIsHere, SIZE, snapshotsIn } from './snapshot-mount';

onBothSessions(
  'a revert is refused while the disk is open, unless forced, and readers then see the snapshot',
  async (t, session) => {
    if (!(await qemuIsHere(t))) return;
    const image = await qcow2(t, workspace(t));
    const mounted = await mount(t, session, ['-o', 'growable', image]);
    const { disk } = mounted;
    const { at, names } = snapshotsIn(mounted);
    put(disk, noise(MIB, 1), 0);
    fs.mkdirSync(at('old'));
    const old = fs.readFileSync(disk);
    put(disk, noise(MIB, 2), 512 * 1024);
    fs.truncateSync(disk, 2 * SIZE);
    fs.mkdirSync(at('new'));
    const fresh = fs.readFileSync(disk);
    const revert = (name: string, word: string) => fs.writeFileSync(at(name, '.revert'), word);

    const fd = fs.openSync(disk, 'r');
    t.throws(() => revert('old', 'now\n'), { code: 'EBUSY' });
    sameBytes(t, fs.readFileSync(disk), fresh, 'refused: nothing has changed');
    revert('old', 'force');
    const seen = Buffer.alloc(MIB);
    fs.readSync(fd, seen, 0, MIB, 512 * 1024);
    sameBytes(t, seen, old.subarray(512 * 1024, 512 * 1024 + MIB), 'one who has it open');
    t.is(fs.fstatSync(fd).size, SIZE);
    fs.closeSync(fd);
    sameBytes(t, fs.readFileSync(disk), old, 'reverted by force');

    await succeed(t, 'sh', ['-c', 'echo now > "$1"', 'sh', at('new', '.revert')]);
    sameBytes(t, fs.readFileSync(disk), fresh, 'reverted');
    sameBytes(t, fs.readFileSync(path.join(mounted.mountpoint, 'layers/0-vm.qcow2/disk')), fresh, 'the layer');
    sameBytes(t, fs.readFileSync(at('old', 'disk')), old, 'the other snapshot');
    put(disk, noise(MIB, 3), 0);
    sameBytes(t, fs.readFileSync(at('new', 'disk')), fresh, 'what is written after a revert is not in the snapshot');

    t.throws(() => revert('old', 'yes'), { code: 'EINVAL' });
    t.throws(() => revert('none', 'now'), { code: 'ENOENT' });
    t.deepEqual(fs.readdirSync(at('old')).sort(), ['disk', 'info.json', 'map.json']);
    t.deepEqual(names().sort(), ['new', 'old']);
    await leaveSound(t, mounted, image, ['new', 'old']);
  },
);

for (const options of [[], ['--kernel-cache']]) {
  test.serial(`after a revert mappings show the snapshot (${options.join('') || 'direct I/O'})`, async (t) => {
    if (!(await qemuIsHere(t))) return;
    const image = await qcow2(t, workspace(t));
    const mounted = await mount(t, 'kernel', [...options, image]);
    const { at } = snapshotsIn(mounted);
    put(mounted.disk, Buffer.alloc(MIB, 1), 0);
    fs.mkdirSync(at('s'));
    put(mounted.disk, Buffer.alloc(MIB, 2), 0);
    const fd = fs.openSync(mounted.disk, 'r+');
    const shared = mapFile(fd, MIB, 'shared');
    t.is(shared.bytes[5000], 2);
    // Changed and not yet written: belongs to the disk as it was.
    shared.bytes[100_000] = 3;
    fs.writeFileSync(at('s', '.revert'), 'force\n');
    t.is(shared.bytes[5000], 1, 'a mapping');
    t.is(shared.bytes[100_000], 1, 'what was changed in it');
    const seen = Buffer.alloc(MIB);
    fs.readSync(fd, seen, 0, MIB, 0);
    sameBytes(t, seen, Buffer.alloc(MIB, 1), 'read(2)');
    shared.unmap();
    fs.closeSync(fd);
    sameBytes(t, fs.readFileSync(mounted.disk).subarray(0, MIB), Buffer.alloc(MIB, 1), 'opened again');
    await leaveSound(t, mounted, image, ['s']);
  });
}

test.serial('with a single worker a revert comes to its end while a mapping is read', async (t) => {
  if (!(await qemuIsHere(t))) return;
  const image = await qcow2(t, workspace(t));
  const mounted = await mount(t, 'kernel', ['--kernel-cache', '--threads', '1', image]);
  const { at } = snapshotsIn(mounted);
  put(mounted.disk, noise(4 * MIB, 1), 0);
  fs.mkdirSync(at('s'));
  const readers = [1, 2].map(() =>
    succeed(t, 'sh', ['-c', 'for i in 1 2 3 4 5; do cat "$1" > /dev/null; done', 'sh', mounted.disk]),
  );
  // Each takes 4 s where the kernel waits for a page that the worker is to fill.
  for (let round = 0; round < 2; round++) await fs.promises.writeFile(at('s', '.revert'), 'force');
  await Promise.all(readers);
  sameBytes(t, fs.readFileSync(mounted.disk).subarray(0, 4 * MIB), noise(4 * MIB, 1), 'the disk');
  await leaveSound(t, mounted, image, ['s']);
});
