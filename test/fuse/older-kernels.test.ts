/** `maskInitFlags` lets the kernel session behave as under older kernels. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import test from 'ava';
import { INIT_FLAG } from '../../src/fuse/kernel/protocol';
import { mapFile } from './calls';
import { eventsOf, hasSharedDirectMappings, skip, startServer, whyNot } from './harness';

const MIB = 1024 * 1024;

test.serial('without MAX_PAGES (before Linux 4.20) a read of 1 MiB comes as requests of 128 KiB', async (t) => {
  const impossible = await whyNot('kernel');
  if (impossible !== undefined) return skip(t, impossible);
  const readsOf = async (maskInitFlags: number): Promise<number> => {
    const server = await startServer(t, { session: 'kernel', maskInitFlags });
    const handle = await fs.promises.open(path.join(server.mountpoint, 'disk'));
    const { bytesRead } = await handle.read(Buffer.alloc(MIB), 0, MIB, 0);
    await handle.close();
    t.is(bytesRead, MIB);
    return (await eventsOf(server)).reads;
  };
  // A buffer that does not begin with a page needs one page, and so one request, more.
  const [one, many] = [await readsOf(0), await readsOf(INIT_FLAG.MAX_PAGES)];
  t.true(one <= 2, String(one));
  t.true(many >= 8, String(many));
});

test.serial(
  'without INIT_EXT (before Linux 5.17) a shared mapping is refused with ENODEV, all else works',
  async (t) => {
    const impossible = await whyNot('kernel');
    if (impossible !== undefined) return skip(t, impossible);
    const withFlag = await startServer(t, { session: 'kernel' });
    const without = await startServer(t, { session: 'kernel', maskInitFlags: INIT_FLAG.INIT_EXT });
    for (const [server, offered] of [
      [withFlag, hasSharedDirectMappings()],
      [without, false],
    ] as const) {
      const handle = await fs.promises.open(path.join(server.mountpoint, 'disk'), 'r+');
      try {
        if (offered) mapFile(handle.fd, MIB, 'shared').unmap();
        else t.throws(() => mapFile(handle.fd, MIB, 'shared'), { code: 'ENODEV' });
        t.is((await handle.write(Buffer.alloc(5), 0, 5, 5)).bytesWritten, 5);
      } finally {
        await handle.close();
      }
    }
  },
);
