/**
 * Formats that we do not read but QEMU recognises by the first sector, seen by writing such sectors with qemu-io to a disk that
 * was guessed as raw. Who looks like one of them is not raw: a header of theirs may name files, as ours do.
 */

interface ForeignFormat {
  name: string;
  probe(head: Buffer): boolean;
}

const startsWith =
  (...magics: string[]) =>
  (head: Buffer): boolean =>
    magics.some((magic) => head.subarray(0, magic.length).equals(Buffer.from(magic, 'latin1')));

/** Comments and blank lines, then the version: a descriptor of VMDK is a text that names the files with the data. */
const VMDK_DESCRIPTOR = /^(?:[ \t]*(?:#[^\n]*)?\r?\n)*[ \t]*version=[0-9]/;

const VDI_SIGNATURE = 0xbeda107f;
const VDI_SIGNATURE_AT = 0x40;

const FOREIGN: readonly ForeignFormat[] = [
  {
    name: 'vmdk',
    probe: (head) => startsWith('KDMV', 'COWD')(head) || VMDK_DESCRIPTOR.test(head.toString('latin1')),
  },
  {
    name: 'vdi',
    probe: (head) => head.length >= VDI_SIGNATURE_AT + 4 && head.readUInt32LE(VDI_SIGNATURE_AT) === VDI_SIGNATURE,
  },
  { name: 'vpc', probe: startsWith('conectix') },
  { name: 'vhdx', probe: startsWith('vhdxfile') },
  { name: 'parallels', probe: startsWith('WithoutFreeSpace', 'WithouFreSpacExt') },
  { name: 'bochs', probe: startsWith('Bochs Virtual HD Image\0') },
  { name: 'cloop', probe: startsWith('#!/bin/sh\n#V2.0 Format\nmodprobe cloop') },
  // Version 1 alone: QEMU takes a LUKS2 header for raw content.
  { name: 'luks', probe: startsWith('LUKS\xba\xbe\0\x01') },
];

/** @param head the first bytes of a file, at most 512 count */
export function foreignFormatOf(head: Uint8Array): string | undefined {
  const bytes = Buffer.from(head.buffer, head.byteOffset, head.byteLength);
  return FOREIGN.find((format) => format.probe(bytes))?.name;
}
