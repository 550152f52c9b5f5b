/** `-o growable`: writing and truncating past the end make the disk larger; nothing makes it smaller. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { MIB } from '../../src/units';
import { workspace } from '../mount/cli';
import { mount, noise, onBothSessions, sameBytes, standAloneImage, succeed, verifyImage } from './disk-mount';

const START = MIB;

onBothSessions('a growable disk grows by writes, truncate and dd, and never shrinks', async (t, session) => {
  const directory = workspace(t);
  const image = standAloneImage(directory, START);
  const { disk, unmount } = await mount(t, session, ['-o', 'growable', image]);
  let shadow = Buffer.alloc(START);
  const growTo = (size: number): void => {
    shadow = Buffer.concat([shadow, Buffer.alloc(size - shadow.length)]);
    t.is(fs.statSync(disk).size, size);
  };
  const put = (content: Buffer, offset: number): void => {
    const fd = fs.openSync(disk, 'r+');
    t.is(fs.writeSync(fd, content, 0, content.length, offset), content.length);
    fs.closeSync(fd);
  };

  const across = noise(8192, 1);
  put(across, START - 4096);
  growTo(START + 4096);
  across.copy(shadow, START - 4096);

  // An odd end is rounded up to a whole sector.
  const far = noise(1001, 2);
  put(far, 3 * MIB);
  growTo(3 * MIB + 1024);
  far.copy(shadow, 3 * MIB);

  await succeed(t, 'truncate', ['-s', '5M', disk]);
  growTo(5 * MIB);
  for (const smaller of ['0', '1M', '5242879']) {
    await succeed(t, 'truncate', ['-s', smaller, disk]);
    growTo(5 * MIB);
  }

  const raw = path.join(directory, 'raw.img');
  const content = noise(6 * MIB, 3);
  fs.writeFileSync(raw, content);
  await succeed(t, 'dd', [`if=${raw}`, `of=${disk}`, 'bs=1M']);
  growTo(6 * MIB);
  content.copy(shadow);
  await succeed(t, 'dd', ['if=/dev/zero', `of=${disk}`, 'bs=64k', 'count=1']);
  growTo(6 * MIB);
  shadow.fill(0, 0, 65_536);

  sameBytes(t, fs.readFileSync(disk), shadow, 'the whole disk');
  await unmount();
  await verifyImage(t, directory, image, shadow);
});

onBothSessions('a growable raw image grows too', async (t, session) => {
  const directory = workspace(t);
  const image = path.join(directory, 'disk.raw');
  fs.writeFileSync(image, noise(4096, 4));
  const { disk, unmount } = await mount(t, session, ['-o', 'growable,format=raw', image]);
  fs.appendFileSync(disk, noise(4096, 5));
  t.is(fs.statSync(disk).size, 8192);
  await unmount();
  sameBytes(t, fs.readFileSync(image), Buffer.concat([noise(4096, 4), noise(4096, 5)]), 'the image');
});

onBothSessions('layers of a growable disk do not grow', async (t, session) => {
  const directory = workspace(t);
  const { mountpoint } = await mount(t, session, ['-o', 'growable', standAloneImage(directory, START)]);
  const layer = path.join(mountpoint, 'layers', '0-vm.qed', 'disk');
  t.throws(() => fs.truncateSync(layer, 2 * START), { code: 'EROFS' });
  t.throws(() => fs.openSync(layer, 'r+'), { code: 'EROFS' });
});
