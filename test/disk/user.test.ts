/** Who may do what with the files of a mount: the owner meets EROFS where nothing can be written, others meet the modes of the images. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import test from 'ava';
import { directory, isRoot, PROJECT, required, run, workspace } from '../mount/cli';
import { createImage, mount, overlayImage, SESSIONS } from './disk-mount';

const NOBODY = { uid: 65534, gid: 65534, env: { ...process.env, HOME: '/nonexistent', LC_ALL: 'C' } };

/** What `sh` says when it opens the file to append nothing, as another user: the words for an errno, or nothing. */
async function refusalToWrite(file: string): Promise<string> {
  const ran = await run('sh', ['-c', ': >> "$1"', 'sh', file], NOBODY);
  return ran.code === 0 ? '' : (ran.stderr.trim().split(': ').at(-1) ?? '');
}

async function mayRead(file: string): Promise<boolean> {
  return (await run('head', ['-c', '1', file], NOBODY)).code === 0;
}

test.serial('an owner who is not root meets EROFS, not EACCES, where nothing can be written', async (t) => {
  if (!required(t, isRoot(), 'needs root to become another user')) return;
  fs.chmodSync('/dev/fuse', 0o666);
  const place = workspace(t);
  const { image, base } = overlayImage(place);
  const mountpoint = directory(place);
  for (const file of [place, image, base, mountpoint]) fs.chownSync(file, NOBODY.uid, NOBODY.gid);
  // The project may lie where other users cannot go.
  const project = directory(place, 'project');
  t.is((await run('mount', ['--bind', PROJECT, project])).code, 0);
  const asUser = (...args: string[]) =>
    run(process.execPath, [path.join(project, 'bin/imagefs'), ...args], { ...NOBODY, cwd: place });

  fs.chmodSync(base, 0o400);
  const files = ['disk', 'info.json', 'layers/0-vm.qed/disk', 'layers/1-base.img/disk', 'layers/1-base.img/map.json'];
  for (const [args, disk] of [
    [[], ''],
    [['-r'], 'Read-only file system'],
  ] as const) {
    const mounted = await asUser('mount', ...args, image, mountpoint);
    t.is(mounted.code, 0, mounted.stderr);
    for (const name of files) {
      const expected = name === 'disk' ? disk : 'Read-only file system';
      t.is(await refusalToWrite(path.join(mountpoint, name)), expected, `${args.join(' ')} ${name}`);
      t.true(await mayRead(path.join(mountpoint, name)), name);
    }
    const left = await asUser('umount', mountpoint);
    t.is(left.code, 0, left.stderr);
  }
});

for (const session of SESSIONS) {
  test.serial(`with allow_other the modes of the image files decide (${session} session)`, async (t) => {
    if (!required(t, isRoot(), 'needs root to become another user')) return;
    const place = workspace(t);
    const { image, base } = overlayImage(place);
    const cases: [image: number, base: number, reads: boolean, readsBase: boolean, refusal: string][] = [
      [0o644, 0o644, true, true, 'Permission denied'],
      [0o644, 0o600, false, false, 'Permission denied'],
      [0o600, 0o644, false, true, 'Permission denied'],
      [0o666, 0o644, true, true, ''],
    ];
    // The kernel checks modes for both sessions; what may differ is only whether it is told them.
    const tried = session === 'kernel' ? cases : cases.slice(0, 2);
    for (const [imageMode, baseMode, reads, readsBase, refusal] of tried) {
      fs.chmodSync(image, imageMode);
      fs.chmodSync(base, baseMode);
      const { mountpoint, disk, unmount } = await mount(t, session, ['--allow-other', image]);
      const label = `${imageMode.toString(8)} over ${baseMode.toString(8)}`;
      t.is(await mayRead(disk), reads, label);
      t.is(await mayRead(path.join(mountpoint, 'map.json')), reads, label);
      t.is(await mayRead(path.join(mountpoint, 'layers/1-base.img/disk')), readsBase, label);
      t.is(await refusalToWrite(disk), refusal, label);
      await unmount();
    }
  });
}

test.serial('with allow_other a mount shows nobody what its data file or another group keeps from them', async (t) => {
  if (!required(t, isRoot(), 'needs root to become another user')) return;
  const place = workspace(t);
  const images = directory(place, 'images');
  const at = (name: string) => path.join(images, name);
  createImage('-f', 'qcow2', '-o', 'data_file=data.bin,data_file_raw=on', at('external.qcow2'), '1M');
  createImage('-f', 'raw', at('group.img'), '1M');
  createImage('-f', 'raw', at('all.img'), '1M');
  for (const name of ['external.qcow2', 'all.img']) fs.chmodSync(at(name), 0o644);
  fs.chmodSync(at('data.bin'), 0o600);
  fs.chmodSync(at('group.img'), 0o640);
  fs.chownSync(at('group.img'), 0, 4242);
  const { mountpoint } = await mount(t, 'kernel', ['--allow-other', images]);
  const reads = async (name: string, gid: number): Promise<boolean> => {
    const file = path.join(mountpoint, name, 'disk');
    return (await run('head', ['-c', '1', file], { ...NOBODY, gid })).code === 0;
  };
  t.true(await reads('all.img', NOBODY.gid));
  t.false(await reads('external.qcow2', NOBODY.gid), 'the data file is for its owner alone');
  t.false(await reads('group.img', 0), "a member of the mount's group, which is not the image's");
  t.false(await reads('group.img', NOBODY.gid));
});
