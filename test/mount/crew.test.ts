import fs from 'node:fs';
import path from 'node:path';
import test from 'ava';
import { launchDaemon } from '../../src/daemon/launch';
import { createImage, daemonConfig, directory, imagefs, workspace } from './cli';

test('a request that takes long keeps nobody waiting, though one worker serves alone at first', async (t) => {
  const dir = workspace(t);
  const image = await createImage(t, path.join(dir, 'vm.qed'), '1M');
  const mnt = directory(dir);
  await launchDaemon(daemonConfig(image, mnt, { testing: { workerIsBusyAtLookup: 'long' } }), [image]);
  const disk = await fs.promises.open(path.join(mnt, 'disk'), 'r');
  let isBusy = true;
  const asked = t.throwsAsync(fs.promises.stat(path.join(mnt, 'long')), { code: 'ENOENT' }).then(() => {
    isBusy = false;
  });
  const began = performance.now();
  let reads = 0;
  while (isBusy) {
    // By then the other request is being served.
    const isLater = performance.now() - began > 100;
    await disk.read(Buffer.alloc(4096), 0, 4096, 0);
    if (isBusy && isLater) reads++;
  }
  await asked;
  t.true(reads > 0, 'reads waited for the request that takes long');
  await disk.close();
  t.is((await imagefs(['umount', mnt])).code, 0);
});
