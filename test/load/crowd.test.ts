import * as fs from 'node:fs';
import * as path from 'node:path';
import test from 'ava';
import { MIB } from '../../src/units';
import { run, workspace } from '../mount/cli';
import { JOB_BYTES, mountCrowd } from './crowd';
import { memoryOf } from './memory-cap';

const WRITERS_PER_IMAGE = 3;

test('many programs on eight images of all formats leave the daemon below 512 MiB, and every byte right', async (t) => {
  const directory = workspace(t);
  const { mountpoint, images, daemon, leave } = await mountCrowd(directory);
  t.is(images.length, 8);
  const data = path.join(directory, 'data');
  const bytes = Buffer.alloc(JOB_BYTES, 'imagefs load ');
  fs.writeFileSync(data, bytes);
  const disks = images.map((image) => path.join(mountpoint, path.basename(image), 'disk'));
  const writers = disks.flatMap((disk) =>
    Array.from({ length: WRITERS_PER_IMAGE }, (_, index) =>
      // Offsets that are no multiple of a cluster.
      run('dd', [
        `if=${data}`,
        `of=${disk}`,
        'bs=64k',
        `seek=${index * JOB_BYTES + 4096}`,
        'oflag=seek_bytes',
        'conv=notrunc',
      ]),
    ),
  );
  for (const { code, stderr } of await Promise.all(writers)) t.is(code, 0, stderr);
  t.true(memoryOf(daemon.pid).peak < 512 * MIB, String(memoryOf(daemon.pid).peak));
  for (const disk of disks) {
    const found = Buffer.alloc(JOB_BYTES * WRITERS_PER_IMAGE);
    const fd = fs.openSync(disk, 'r');
    fs.readSync(fd, found, 0, found.length, 4096);
    fs.closeSync(fd);
    t.true(found.equals(Buffer.alloc(found.length, bytes)), disk);
  }
  await t.notThrowsAsync(leave());
});
