/** ioctl(2) with a pointer to its argument. */
import { declare } from './libc';

export const ioctl = declare<[number, number, Buffer]>('int ioctl(int fd, unsigned long request, void *argument)');
