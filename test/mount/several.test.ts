import fs from 'node:fs';
import path from 'node:path';
import test from 'ava';
import { assertFree, createImage, directory, imagefs, mount, workspace } from './cli';

test('several images get a folder each, with unique names, and are written independently', async (t) => {
  const dir = workspace(t);
  const one = await createImage(t, path.join(directory(dir, '1'), 'vm.qed'), '1M');
  const two = await createImage(t, path.join(directory(dir, '2'), 'vm.qed'), '2M');
  const three = await createImage(t, path.join(dir, 'c.raw'), '3M');
  const mnt = directory(dir);
  await mount(t, [one, two, three, mnt]);
  t.deepEqual(fs.readdirSync(mnt).sort(), ['c.raw', 'vm.qed', 'vm.qed~2']);
  for (const [name, size] of [
    ['vm.qed', 1],
    ['vm.qed~2', 2],
    ['c.raw', 3],
  ] as const) {
    t.is(fs.statSync(path.join(mnt, name, 'disk')).size, size * 1024 * 1024);
    fs.writeFileSync(path.join(mnt, name, 'disk'), `disk of ${name}`, { flag: 'r+' });
  }
  t.is((await imagefs(['umount', mnt])).code, 0);
  await mount(t, ['-r', one, two, three, mnt]);
  for (const name of ['vm.qed', 'vm.qed~2', 'c.raw']) {
    t.regex(fs.readFileSync(path.join(mnt, name, 'disk'), 'latin1').slice(0, 40), new RegExp(`^disk of ${name}\0`));
  }
  t.is((await imagefs(['umount', mnt])).code, 0);
  await assertFree(t, one);
});

test('a directory shows its images, leaves other files out, and a broken one shows its error', async (t) => {
  const dir = workspace(t);
  const images = directory(dir, 'images');
  const good = await createImage(t, path.join(images, 'b.qed'), '1M');
  await createImage(t, path.join(images, 'a.img'), '1M');
  fs.copyFileSync(good, path.join(images, 'no-extension'));
  fs.writeFileSync(path.join(images, 'broken.qed'), fs.readFileSync(good).subarray(0, 30));
  fs.writeFileSync(path.join(images, 'overwritten.qed'), 'this was an image once');
  fs.writeFileSync(path.join(images, 'README.txt'), 'about these images');
  fs.writeFileSync(path.join(images, '.hidden.qed'), '');
  directory(images, 'folder.qed');
  const mnt = directory(dir);
  const { code, stderr } = await imagefs(['mount', images, mnt]);
  t.is(code, 0, stderr);
  t.regex(stderr, /^imagefs: [^\n]*broken\.qed[^\n]*\nimagefs: [^\n]*overwritten\.qed[^\n]*\n$/);
  t.deepEqual(fs.readdirSync(mnt).sort(), ['a.img', 'b.qed', 'broken.qed', 'no-extension', 'overwritten.qed']);
  t.deepEqual(fs.readdirSync(path.join(mnt, 'broken.qed')), ['error.json']);
  const error = JSON.parse(fs.readFileSync(path.join(mnt, 'broken.qed', 'error.json'), 'utf8')) as object;
  t.regex(JSON.stringify(error), /broken\.qed/);
  fs.writeFileSync(path.join(mnt, 'b.qed', 'disk'), 'works', { flag: 'r+' });
  t.is((await imagefs(['umount', mnt])).code, 0);
  await assertFree(t, good);
});

test('a directory with one image still gives a folder', async (t) => {
  const dir = workspace(t);
  const images = directory(dir, 'images');
  await createImage(t, path.join(images, 'only.qed'), '1M');
  const mnt = directory(dir);
  await mount(t, [images, mnt]);
  t.deepEqual(fs.readdirSync(mnt), ['only.qed']);
});
