/**
 * `npm run demo`: an overlay on a base image with a real file system in it, mounted, read, written, loop-mounted, checked.
 * Prints every command before it runs and what came back, and cleans up whatever happens.
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';

const PROJECT = path.resolve(__dirname, '..');
const IMAGEFS = path.join(PROJECT, 'bin', 'imagefs');
const IS_ROOT = process.getuid?.() === 0;
/** Where each command runs; names on the screen are relative to it. */
const scratch = fs.mkdtempSync(path.join(os.tmpdir(), 'imagefs-demo-'));

function say(text: string): void {
  console.log(`\n# ${text}`);
}

/** The command that runs just now, and whether the demo was told to end. */
let current: ChildProcess | undefined;
let interrupted = false;

/** Runs a shell command line in the scratch directory. Throws when it fails. */
async function run(commandLine: string): Promise<void> {
  if (interrupted) throw new Error('interrupted');
  console.log(`$ ${commandLine}`);
  const child = spawn('bash', ['-c', `imagefs() { "$IMAGEFS" "$@"; }\n${commandLine}`], {
    cwd: scratch,
    env: { ...process.env, IMAGEFS, PROJECT },
    stdio: ['ignore', 'inherit', 'inherit'],
  });
  current = child;
  const code = await new Promise<number | null>((resolve, reject) => {
    child.once('error', reject);
    child.once('exit', resolve);
  });
  current = undefined;
  if (interrupted) throw new Error('interrupted');
  if (code !== 0) throw new Error(`"${commandLine}" ended with exit code ${code}`);
}

function isInstalled(command: string): boolean {
  return spawnSync('bash', ['-c', `command -v ${command}`], { stdio: 'ignore' }).status === 0;
}

async function makeImages(): Promise<void> {
  say('A base image with a real file system in it, made of the sources of this project');
  await run('mkfs.ext4 -q -F -d "$PROJECT/src" -L guest base.raw 32M');
  say('An overlay: it begins as the base, and what is written goes into it');
  await run('imagefs create -f qed -b base.raw -F raw overlay.qed');
}

async function look(): Promise<void> {
  say('Mounted: the disk as one file, and every layer of the chain beside it');
  await run('mkdir mnt && imagefs mount overlay.qed mnt');
  await run('imagefs list');
  await run('(cd mnt && find . -type f | sort)');
  await run('ls -ls mnt/disk mnt/layers/*/disk');
  await run('cat mnt/info.json');
  say('Any program can read it: dd copies the disk out, debugfs looks into its file system');
  await run('dd if=mnt/disk of=copy.raw bs=1M status=none && cmp copy.raw base.raw && echo same');
  if (isInstalled('qemu-img')) {
    await run(
      'qemu-img convert -U -O raw overlay.qed by-qemu.raw && cmp copy.raw by-qemu.raw && echo "the same as by qemu-img"',
    );
  } else console.log('(qemu-img is not installed: not compared with what it makes of the image)');
  await run('debugfs -R "ls -p /" mnt/disk 2>/dev/null | head -n 5');
}

async function write(): Promise<void> {
  say('Written: the first 512 bytes of an ext4 disk are free for a boot loader. The base keeps its own');
  await run('echo "hello from the host" | dd of=mnt/disk conv=notrunc,fsync status=none');
  await run('head -n 1 mnt/disk');
  await run('head -n 1 mnt/layers/0-overlay.qed/disk');
  await run('head -c 20 mnt/layers/1-base.raw/disk | od -An -c | head -n 1');
  await run('cat mnt/map.json | head -n 3');
  if (!IS_ROOT) {
    console.log('(not root: the file system of the guest is not loop-mounted)');
    return;
  }
  say('Loop-mounted: the file system of the guest, read and written as any other');
  await run('mkdir guest && mount -o loop mnt/disk guest && ls guest');
  await run('echo "changed in the guest" > guest/note && rm -r guest/cli && fstrim -v guest && umount guest');
}

async function finish(): Promise<void> {
  say('Unmounted: when this returns, everything is on disk and the process is gone');
  await run('imagefs umount --wait mnt && imagefs list');
  await run('imagefs check overlay.qed');
  if (isInstalled('qemu-img')) await run('qemu-img check overlay.qed');
  await run('imagefs info --backing-chain overlay.qed');
  say('What was written is there, and the base is as it was');
  await run('imagefs mount -r overlay.qed mnt && head -n 1 mnt/disk');
  if (IS_ROOT) await run('debugfs -R "cat /note" mnt/disk 2>/dev/null');
  await run('e2fsck -fn mnt/disk');
  await run('cmp mnt/layers/1-base.raw/disk copy.raw && echo "the base is unchanged" && imagefs umount mnt');
}

function cleanUp(): void {
  const quiet = (command: string, ...args: string[]) =>
    spawnSync(command, args, { cwd: scratch, stdio: 'ignore', timeout: 20_000 });
  const mounted = () => fs.readFileSync('/proc/self/mounts', 'utf8').includes(` ${scratch}/`);
  if (mounted()) {
    quiet('umount', 'guest');
    quiet(IMAGEFS, 'umount', '--wait', 'mnt');
  }
  if (mounted()) quiet(IMAGEFS, 'umount', '--lazy', 'mnt');
  // A delete must never reach through a mount.
  if (mounted()) console.error(`Something is still mounted in ${scratch}: left as it is`);
  else fs.rmSync(scratch, { recursive: true, force: true });
}

for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  process.on(signal, () => {
    interrupted = true;
    current?.kill('SIGTERM');
  });
}

async function main(): Promise<void> {
  console.log(`In ${scratch}${IS_ROOT ? '' : ', not as root'}`);
  try {
    await makeImages();
    await look();
    await write();
    await finish();
    say('Done. imagefs --help shows the commands, README.md the rest');
  } catch (error) {
    console.error(`The demo stopped: ${error instanceof Error ? error.message : String(error)}`);
    process.exitCode = interrupted ? 130 : 1;
  } finally {
    cleanUp();
  }
}

void main();
