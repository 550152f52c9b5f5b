/** mmap(2) of `disk`: how databases, qemu and losetup's readers look at files. */
import * as fs from 'node:fs';
import test from 'ava';
import * as koffi from 'koffi';
import { MIB } from '../../src/units';
import { workspace } from '../mount/cli';
import { DISK_SIZE, mount, noise, onBothSessions, overlayImage, sameBytes, verifyImage } from './disk-mount';

const PROT_READ = 1;
const PROT_WRITE = 2;
const MAP_SHARED = 1;
const MAP_PRIVATE = 2;
const MS_SYNC = 4;
const MAP_FAILED = 0xffff_ffff_ffff_ffffn;

const libc = koffi.load(null);
const mmap = libc.func('void *mmap(void *addr, size_t length, int prot, int flags, int fd, int64_t offset)');
const munmap = libc.func('int munmap(void *addr, size_t length)');
const msync = libc.func('int msync(void *addr, size_t length, int flags)');
const copyOut = libc.func('void *memcpy(void *target, void *source, size_t length)');

interface Mapped {
  address: unknown;
  read(length: number): Buffer;
  write(content: Buffer): void;
}

function map(fd: number, length: number, protection: number, flags: number): Mapped {
  const address: unknown = mmap(null, length, protection, flags, fd, 0);
  if (koffi.address(address) === MAP_FAILED) throw new Error(`mmap: errno ${koffi.errno()}`);
  return {
    address,
    read(count) {
      const buffer = Buffer.alloc(count);
      copyOut(buffer, address, count);
      return buffer;
    },
    write(content) {
      copyOut(address, content, content.length);
    },
  };
}

onBothSessions('disk can be mapped for reading', async (t, session) => {
  const directory = workspace(t);
  const { image, shadow } = overlayImage(directory);
  const { disk } = await mount(t, session, [image]);
  const fd = fs.openSync(disk, 'r');
  // The native session speaks a protocol in which files with direct I/O can only be mapped privately.
  const kinds = session === 'kernel' ? [MAP_SHARED, MAP_PRIVATE] : [MAP_PRIVATE];
  for (const flags of kinds) {
    const mapped = map(fd, DISK_SIZE, PROT_READ, flags);
    sameBytes(t, mapped.read(DISK_SIZE), shadow, `flags ${flags}`);
    munmap(mapped.address, DISK_SIZE);
  }
  if (session === 'native')
    t.throws(() => map(fd, DISK_SIZE, PROT_READ, MAP_SHARED), { message: 'mmap: errno 19' }, 'ENODEV');
  fs.closeSync(fd);
});

test.serial('what is written through a shared mapping is on the disk after msync (kernel session)', async (t) => {
  const directory = workspace(t);
  const { image, shadow } = overlayImage(directory);
  const { disk, unmount } = await mount(t, 'kernel', [image]);
  const fd = fs.openSync(disk, 'r+');
  const mapped = map(fd, MIB, PROT_READ + PROT_WRITE, MAP_SHARED);
  const content = noise(300_001, 5);
  mapped.write(content);
  t.is(msync(mapped.address, MIB, MS_SYNC), 0);
  content.copy(shadow);
  sameBytes(t, fs.readFileSync(disk), shadow, 'read(2) sees what was mapped');
  munmap(mapped.address, MIB);
  fs.closeSync(fd);
  await unmount();
  await verifyImage(t, directory, image, shadow);
});
